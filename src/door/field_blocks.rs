//! Keeps the `#` of `:path` visible in HTTP/2's compressed field blocks (RFC 7541), as `request_line` does in request lines.
//!
//! A block is changed in place, so what stands for a `#` must be as long. In plain text `^` is, and the gateway refuses it with a problem.
//! In Huffman code only `>` is, which h2 refuses as malformed. No other field may change: an Idempotency-Key may contain `#`. A field may
//! take its name from the connection's table of recent fields, so that table is followed too, with the lengths of its names and values.

use std::collections::VecDeque;

use super::request_line::FRAGMENT;

const PATH: &str = ":path";
/// `:path` in Huffman code. Every text has exactly one valid code.
const PATH_HUFFMAN: [u8; 4] = [0xb9, 0x58, 0xd3, 0x3f];
/// `#` in Huffman code. With the last bit set it is `>`.
const NUMBER_SIGN: u64 = 0xffa;
const NUMBER_SIGN_BITS: u32 = 12;

/// The Huffman codes (RFC 7541 appendix B) in their order as numbers: 32 bits below the bound begin with a code of so many bits.
const CODE_LENGTHS: [(u64, u32); 20] = [
    (0x5000_0000, 5),
    (0xb800_0000, 6),
    (0xf800_0000, 7),
    (0xfe00_0000, 8),
    (0xff40_0000, 10),
    (0xffa0_0000, 11),
    (0xffc0_0000, 12),
    (0xfff0_0000, 13),
    (0xfff8_0000, 14),
    (0xfffe_0000, 15),
    (0xfffe_6000, 19),
    (0xfffe_e000, 20),
    (0xffff_4800, 21),
    (0xffff_b000, 22),
    (0xffff_ea00, 23),
    (0xffff_f600, 24),
    (0xffff_f800, 25),
    (0xffff_fbc0, 26),
    (0xffff_fe20, 27),
    (0xffff_fff0, 28),
];
/// The length of the codes beyond the last bound.
const CODE_BITS_MAX: u32 = 30;

/// The block breaks RFC 7541, or h2 and this may read it differently.
#[derive(Debug)]
pub(super) struct Unfollowable;

/// Follows the field blocks of a connection, and marks the `#` in their `:path`.
#[derive(Debug)]
pub(super) struct FieldBlocks {
    table: FieldTable,
    place: Place,
    literal: Literal,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Before a field.
    Field,
    /// In a number that takes several bytes.
    Number(Number),
    /// Before a name or a value.
    TextLength,
    /// In a name or a value.
    Text(Text),
}

/// The literal field that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Literal {
    /// Does it become an entry of the table?
    is_added: bool,
    name: Option<Name>,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    bytes: usize,
    is_path: bool,
}

impl FieldBlocks {
    /// `table_bytes_max`: the table's largest size that the client is told.
    pub(super) fn new(table_bytes_max: usize) -> Self {
        Self { table: FieldTable::new(table_bytes_max), place: Place::Field, literal: Literal::default() }
    }

    pub(super) fn is_between_fields(&self) -> bool {
        matches!(self.place, Place::Field)
    }

    /// Follows the next bytes of a block.
    pub(super) fn mark_fragments(&mut self, mut block: &mut [u8]) -> Result<(), Unfollowable> {
        loop {
            if let Place::Text(mut text) = self.place {
                let length = text.left.min(block.len());
                let (own, rest) = block.split_at_mut(length);
                text.read(own);
                block = rest;
                self.place = Place::Text(text);
                if text.left > 0 {
                    return Ok(());
                }
                self.on_text(&text)?;
            }
            let Some((byte, rest)) = block.split_first_mut() else { return Ok(()) };
            block = rest;
            self.on_byte(*byte)?;
        }
    }

    fn on_byte(&mut self, byte: u8) -> Result<(), Unfollowable> {
        let number = match self.place {
            Place::Field => {
                self.literal = Literal { is_added: byte & 0xc0 == 0x40, name: None };
                match byte {
                    0x80.. => Number::begin(byte, 7, NumberOf::Field),
                    0x40.. => Number::begin(byte, 6, NumberOf::Name),
                    0x20.. => Number::begin(byte, 5, NumberOf::TableSize),
                    _ => Number::begin(byte, 4, NumberOf::Name),
                }
            }
            Place::Number(number) => number.go_on(byte)?,
            Place::TextLength | Place::Text(_) => {
                Number::begin(byte, 7, NumberOf::TextLength { is_huffman: byte & 0x80 != 0 })
            }
        };
        self.place = if number.is_whole { self.on_number(number)? } else { Place::Number(number) };
        Ok(())
    }

    /// Returns what comes behind the number.
    fn on_number(&mut self, number: Number) -> Result<Place, Unfollowable> {
        match number.of {
            NumberOf::Field => self.table.name(number.value).map(|_| Place::Field),
            NumberOf::TableSize => self.table.resize(number.value).map(|()| Place::Field),
            NumberOf::Name => {
                self.literal.name = (number.value > 0).then(|| self.table.name(number.value)).transpose()?;
                Ok(Place::TextLength)
            }
            NumberOf::TextLength { is_huffman } => {
                let part = match self.literal {
                    Literal { name: None, .. } => Part::Name,
                    Literal { name: Some(Name { is_path: true, .. }), .. } => Part::Path,
                    Literal { is_added: true, .. } => Part::CountedValue,
                    Literal { is_added: false, .. } => Part::OtherValue,
                };
                Ok(Place::Text(Text::new(number.value, is_huffman, part)))
            }
        }
    }

    fn on_text(&mut self, text: &Text) -> Result<(), Unfollowable> {
        self.place = match self.literal.name {
            // h2 would wait for more of an empty name, and read the value as fields.
            None if text.decoded == 0 => return Err(Unfollowable),
            None => {
                self.literal.name = Some(Name { bytes: text.decoded, is_path: text.is_path_name() });
                Place::TextLength
            }
            Some(name) => {
                if self.literal.is_added {
                    self.table.add(name, text.decoded);
                }
                Place::Field
            }
        };
        Ok(())
    }
}

/// An integer, or as much of it as there is (RFC 7541 section 5.1).
#[derive(Clone, Copy, Debug)]
struct Number {
    of: NumberOf,
    value: usize,
    shift: u32,
    is_whole: bool,
}

#[derive(Clone, Copy, Debug)]
enum NumberOf {
    /// The index of a whole field.
    Field,
    /// The index of a name; 0 if the name follows.
    Name,
    TableSize,
    TextLength {
        is_huffman: bool,
    },
}

impl Number {
    /// h2 refuses what takes more bytes.
    const SHIFT_MAX: u32 = 21;

    fn begin(byte: u8, prefix_bits: u32, of: NumberOf) -> Self {
        let most = (1 << prefix_bits) - 1;
        let value = usize::from(byte) & most;
        Self { of, value, shift: 0, is_whole: value < most }
    }

    fn go_on(self, byte: u8) -> Result<Self, Unfollowable> {
        let is_whole = byte & 0x80 == 0;
        let value = self.value + (usize::from(byte & 0x7f) << self.shift);
        match self.shift {
            Self::SHIFT_MAX.. if !is_whole => Err(Unfollowable),
            shift => Ok(Self { value, shift: shift + 7, is_whole, ..self }),
        }
    }
}

/// A name or a value.
#[derive(Clone, Copy, Debug)]
struct Text {
    part: Part,
    is_huffman: bool,
    /// Bytes to come.
    left: usize,
    /// Bytes that it has without Huffman code, so far.
    decoded: usize,
    /// Bits of a Huffman code that has not arrived whole, behind older ones.
    bits: u64,
    bit_count: u32,
    /// What must come to make it `:path`; `None` if it cannot be that any more.
    to_be_path: Option<&'static [u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Name,
    /// The value of `:path`.
    Path,
    /// A value whose length the table needs.
    CountedValue,
    OtherValue,
}

impl Text {
    fn new(left: usize, is_huffman: bool, part: Part) -> Self {
        let path = if is_huffman { PATH_HUFFMAN.as_slice() } else { PATH.as_bytes() };
        Self { part, is_huffman, left, decoded: 0, bits: 0, bit_count: 0, to_be_path: Some(path) }
    }

    fn is_path_name(&self) -> bool {
        self.to_be_path.is_some_and(<[u8]>::is_empty)
    }

    fn read(&mut self, own: &mut [u8]) {
        self.left -= own.len();
        self.to_be_path = self.to_be_path.and_then(|path| path.strip_prefix(&*own));
        match (self.part, self.is_huffman) {
            (Part::OtherValue, _) => {}
            (_, true) => own.iter_mut().for_each(|byte| self.read_huffman(byte)),
            (part, false) => {
                self.decoded += own.len();
                if part == Part::Path {
                    own.iter_mut().filter(|byte| **byte == b'#').for_each(|byte| *byte = FRAGMENT);
                }
            }
        }
    }

    fn read_huffman(&mut self, byte: &mut u8) {
        self.bits = self.bits << 8 | u64::from(*byte);
        self.bit_count += 8;
        while self.bit_count > 0 {
            let next = (self.bits << (u64::BITS - self.bit_count)) >> u32::BITS;
            let known = CODE_LENGTHS.iter().find(|(bound, _)| next < *bound);
            let length = known.map_or(CODE_BITS_MAX, |(_, length)| *length);
            let Some(behind) = self.bit_count.checked_sub(length) else { return };
            self.bit_count = behind;
            self.decoded += 1;
            // A code always ends in the byte that completes it, so its last bit can still be changed.
            if self.part == Part::Path && next >> (u32::BITS - NUMBER_SIGN_BITS) == NUMBER_SIGN {
                *byte |= 1_u8.unbounded_shl(behind);
            }
        }
    }
}

/// The table of the client's recent fields (RFC 7541 section 2.3), without their text.
#[derive(Debug)]
struct FieldTable {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    /// What the client may choose for `bytes_max`.
    limit: usize,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    bytes: usize,
}

impl FieldTable {
    /// The size before the client chooses one, and what is added to an entry's text.
    const INITIAL_BYTES: usize = 4096;
    const ENTRY_BYTES: usize = 32;

    fn new(limit: usize) -> Self {
        let limit = limit.max(Self::INITIAL_BYTES);
        Self { entries: VecDeque::new(), bytes: 0, bytes_max: Self::INITIAL_BYTES, limit }
    }

    /// The name of the field with this index.
    fn name(&self, index: usize) -> Result<Name, Unfollowable> {
        let place = index.checked_sub(1).ok_or(Unfollowable)?;
        let name = match place.checked_sub(STATIC_NAMES.len()) {
            Some(place) => self.entries.get(place).map(|entry| entry.name),
            None => STATIC_NAMES.get(place).map(|name| Name { bytes: name.len(), is_path: *name == PATH }),
        };
        name.ok_or(Unfollowable)
    }

    fn add(&mut self, name: Name, value_bytes: usize) {
        let bytes = name.bytes + value_bytes + Self::ENTRY_BYTES;
        self.evict_to(self.bytes_max.saturating_sub(bytes));
        if bytes <= self.bytes_max {
            self.bytes += bytes;
            self.entries.push_front(Entry { name, bytes });
        }
    }

    fn resize(&mut self, bytes_max: usize) -> Result<(), Unfollowable> {
        if bytes_max > self.limit {
            return Err(Unfollowable);
        }
        self.bytes_max = bytes_max;
        self.evict_to(bytes_max);
        Ok(())
    }

    fn evict_to(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            self.bytes -= self.entries.pop_back().map_or(self.bytes, |oldest| oldest.bytes);
        }
    }
}

/// The names of the static table (RFC 7541 appendix A), from index 1.
#[rustfmt::skip]
const STATIC_NAMES: [&str; 61] = [
    ":authority", ":method", ":method", PATH, PATH, ":scheme", ":scheme", ":status", ":status", ":status", ":status", ":status",
    ":status", ":status", "accept-charset", "accept-encoding", "accept-language", "accept-ranges", "accept",
    "access-control-allow-origin", "age", "allow", "authorization", "cache-control", "content-disposition", "content-encoding",
    "content-language", "content-length", "content-location", "content-range", "content-type", "cookie", "date", "etag", "expect",
    "expires", "from", "host", "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified",
    "link", "location", "max-forwards", "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh", "retry-after",
    "server", "set-cookie", "strict-transport-security", "transfer-encoding", "user-agent", "vary", "via", "www-authenticate",
];
