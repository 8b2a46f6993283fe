//! The system's users and groups by name.

#![expect(clippy::disallowed_methods, reason = "sockets are created at startup")]

use std::io::{Error, ErrorKind};

/// The number of this user, which is a number itself or a name in `/etc/passwd`.
pub(super) fn user(account: &str) -> Result<u32, Error> {
    number(account, "user", "/etc/passwd")
}

/// The number of this group, which is a number itself or a name in `/etc/group`.
pub(super) fn group(account: &str) -> Result<u32, Error> {
    number(account, "group", "/etc/group")
}

fn number(account: &str, kind: &str, file: &str) -> Result<u32, Error> {
    if let Ok(number) = account.parse() {
        return Ok(number);
    }
    let unknown = || Error::new(ErrorKind::NotFound, format!("{file} has no {kind} {account:?}: write its number"));
    in_table(&std::fs::read_to_string(file)?, account).ok_or_else(unknown)
}

/// Both files have the name, a password and the number in their first fields.
fn in_table(table: &str, account: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(account)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found() {
        let table = "root:x:0:0:root:/root:/bin/sh\nmake:x:971:970::/:/usr/sbin/nologin\nbad:x\n";
        assert_eq!(
            ["root", "make", "bad", "mak", ""].map(|name| in_table(table, name)),
            [Some(0), Some(971), None, None, None]
        );
        assert_eq!((user("1000").unwrap(), user("root").unwrap(), group("root").unwrap()), (1000, 0, 0));
        assert!(group("no-such-group").unwrap_err().to_string().contains("write its number"));
    }
}
