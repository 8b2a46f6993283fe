//! Reads in HTTP/2's compressed field blocks (RFC 7541) what h2 does not pass on: a `#` in `:path`, which the library would cut off with
//! what follows; whether there is an `expect`; and whether the method is HEAD.
//!
//! A field may stand in the connection's table of recent fields, wholly or with its name, so that table is followed too: with the lengths
//! of its names and values, because those decide what is evicted.

use std::collections::VecDeque;

/// The names that matter, and HEAD, each in plain text and in Huffman code. Every text has exactly one valid code.
const PATH: [&[u8]; 2] = [b":path", &[0xb9, 0x58, 0xd3, 0x3f]];
const METHOD: [&[u8]; 2] = [b":method", &[0xb9, 0x49, 0x53, 0x39, 0xe4]];
const EXPECT: [&[u8]; 2] = [b"expect", &[0x2f, 0x9a, 0xca, 0x44, 0xff]];
const HEAD: [&[u8]; 2] = [b"HEAD", &[0xc7, 0x82, 0x1b, 0xff]];
/// `#` in Huffman code.
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

/// What was read in a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockNotes {
    /// Its `:path` has a `#`.
    pub(super) has_fragment: bool,
    pub(super) has_expect: bool,
    pub(super) is_head: bool,
}

/// Follows the field blocks of a connection.
#[derive(Debug)]
pub(super) struct FieldBlocks {
    table: FieldTable,
    place: Place,
    literal: Literal,
    notes: BlockNotes,
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
    kind: NameKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NameKind {
    Path,
    Method,
    Expect,
    Other,
}

impl NameKind {
    /// Its name is the one at this place of the static table.
    const fn at(place: usize) -> Self {
        match place {
            1 | 2 => Self::Method,
            3 | 4 => Self::Path,
            34 => Self::Expect,
            _ => Self::Other,
        }
    }
}

impl FieldBlocks {
    /// `table_bytes_max`: the table's largest size that the client is told.
    pub(super) fn new(table_bytes_max: usize) -> Self {
        Self {
            table: FieldTable::new(table_bytes_max),
            place: Place::Field,
            literal: Literal::default(),
            notes: BlockNotes::default(),
        }
    }

    pub(super) fn is_between_fields(&self) -> bool {
        matches!(self.place, Place::Field)
    }

    /// What was read since the last call.
    pub(super) fn take_notes(&mut self) -> BlockNotes {
        std::mem::take(&mut self.notes)
    }

    /// Follows the next bytes of a block.
    pub(super) fn follow(&mut self, mut block: &[u8]) -> Result<(), Unfollowable> {
        loop {
            if let Place::Text(mut text) = self.place {
                let (own, rest) = block.split_at(text.left.min(block.len()));
                text.read(own);
                block = rest;
                self.place = Place::Text(text);
                if text.left > 0 {
                    return Ok(());
                }
                self.on_text(&text)?;
            }
            let Some((byte, rest)) = block.split_first() else { return Ok(()) };
            block = rest;
            self.on_byte(*byte)?;
        }
    }

    /// A field with this name was read whole. `is_odd`: its value is what is looked for.
    fn note(&mut self, name: Name, is_odd: bool) {
        match name.kind {
            NameKind::Path => self.notes.has_fragment |= is_odd,
            NameKind::Method => self.notes.is_head |= is_odd,
            NameKind::Expect => self.notes.has_expect = true,
            NameKind::Other => {}
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
            NumberOf::Field => {
                let (name, is_odd) = self.table.field(number.value)?;
                self.note(name, is_odd);
                Ok(Place::Field)
            }
            NumberOf::TableSize => self.table.resize(number.value).map(|()| Place::Field),
            NumberOf::Name => {
                self.literal.name =
                    (number.value > 0).then(|| self.table.field(number.value).map(|(name, _)| name)).transpose()?;
                Ok(Place::TextLength)
            }
            NumberOf::TextLength { is_huffman } => {
                let part = match self.literal {
                    Literal { name: None, .. } => Part::Name,
                    Literal { name: Some(Name { kind: NameKind::Path, .. }), .. } => Part::Path,
                    Literal { name: Some(Name { kind: NameKind::Method, .. }), .. } => Part::Method,
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
                self.literal.name = Some(Name { bytes: text.decoded, kind: text.name_kind() });
                Place::TextLength
            }
            Some(name) => {
                self.note(name, text.is_odd());
                if self.literal.is_added {
                    self.table.add(name, text);
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
    has_number_sign: bool,
    /// What must come to make it one of the texts that are looked for; `None` if it cannot be that any more.
    to_be: [Option<&'static [u8]>; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Name,
    /// The value of `:path`.
    Path,
    /// The value of `:method`.
    Method,
    /// A value whose length the table needs.
    CountedValue,
    OtherValue,
}

impl Text {
    fn new(left: usize, is_huffman: bool, part: Part) -> Self {
        let form = |[plain, code]: [&'static [u8]; 2]| Some(if is_huffman { code } else { plain });
        let to_be = match part {
            Part::Name => [form(PATH), form(METHOD), form(EXPECT)],
            Part::Method => [form(HEAD), None, None],
            Part::Path | Part::CountedValue | Part::OtherValue => [None; 3],
        };
        Self { part, is_huffman, left, decoded: 0, bits: 0, bit_count: 0, has_number_sign: false, to_be }
    }

    fn name_kind(&self) -> NameKind {
        match self.to_be.map(|rest| rest.is_some_and(<[u8]>::is_empty)) {
            [true, ..] => NameKind::Path,
            [_, true, _] => NameKind::Method,
            [.., true] => NameKind::Expect,
            _ => NameKind::Other,
        }
    }

    /// Is it a path with a `#`, or the method HEAD?
    fn is_odd(&self) -> bool {
        match self.part {
            Part::Path => self.has_number_sign,
            Part::Method => self.to_be[0].is_some_and(<[u8]>::is_empty),
            Part::Name | Part::CountedValue | Part::OtherValue => false,
        }
    }

    fn read(&mut self, own: &[u8]) {
        self.left -= own.len();
        if matches!(self.part, Part::Name | Part::Method) {
            self.to_be = self.to_be.map(|rest| rest?.strip_prefix(own));
        }
        match (self.part, self.is_huffman) {
            (Part::OtherValue, _) => {}
            (_, true) => own.iter().for_each(|byte| self.read_huffman(*byte)),
            (part, false) => {
                self.decoded += own.len();
                self.has_number_sign |= part == Part::Path && own.contains(&b'#');
            }
        }
    }

    fn read_huffman(&mut self, byte: u8) {
        self.bits = self.bits << 8 | u64::from(byte);
        self.bit_count += 8;
        while self.bit_count > 0 {
            let next = (self.bits << (u64::BITS - self.bit_count)) >> u32::BITS;
            let known = CODE_LENGTHS.iter().find(|(bound, _)| next < *bound);
            let length = known.map_or(CODE_BITS_MAX, |(_, length)| *length);
            let Some(behind) = self.bit_count.checked_sub(length) else { return };
            self.bit_count = behind;
            self.decoded += 1;
            self.has_number_sign |= next >> (u32::BITS - NUMBER_SIGN_BITS) == NUMBER_SIGN;
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
    /// A path with a `#`, or the method HEAD.
    is_odd: bool,
}

impl FieldTable {
    /// The size before the client chooses one, and what is added to an entry's text.
    const INITIAL_BYTES: usize = 4096;
    const ENTRY_BYTES: usize = 32;

    fn new(limit: usize) -> Self {
        let limit = limit.max(Self::INITIAL_BYTES);
        Self { entries: VecDeque::new(), bytes: 0, bytes_max: Self::INITIAL_BYTES, limit }
    }

    /// The name of the field with this index, and whether its value is what is looked for.
    fn field(&self, index: usize) -> Result<(Name, bool), Unfollowable> {
        let place = index.checked_sub(1).ok_or(Unfollowable)?;
        let field = match place.checked_sub(STATIC_NAMES.len()) {
            Some(place) => self.entries.get(place).map(|entry| (entry.name, entry.is_odd)),
            None => {
                let name = STATIC_NAMES.get(place).map(|name| Name { bytes: name.len(), kind: NameKind::at(place) });
                name.map(|name| (name, false))
            }
        };
        field.ok_or(Unfollowable)
    }

    fn add(&mut self, name: Name, value: &Text) {
        let bytes = name.bytes + value.decoded + Self::ENTRY_BYTES;
        self.evict_to(self.bytes_max.saturating_sub(bytes));
        if bytes <= self.bytes_max {
            self.bytes += bytes;
            self.entries.push_front(Entry { name, bytes, is_odd: value.is_odd() });
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
    ":authority", ":method", ":method", ":path", ":path", ":scheme", ":scheme", ":status", ":status", ":status", ":status", ":status",
    ":status", ":status", "accept-charset", "accept-encoding", "accept-language", "accept-ranges", "accept",
    "access-control-allow-origin", "age", "allow", "authorization", "cache-control", "content-disposition", "content-encoding",
    "content-language", "content-length", "content-location", "content-range", "content-type", "cookie", "date", "etag", "expect",
    "expires", "from", "host", "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified",
    "link", "location", "max-forwards", "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh", "retry-after",
    "server", "set-cookie", "strict-transport-security", "transfer-encoding", "user-agent", "vary", "via", "www-authenticate",
];
