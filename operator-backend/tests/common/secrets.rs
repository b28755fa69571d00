//! What must never be found in anything a backend writes, recognised by its shape: whoever leaks a token or a
//! cursor is caught without the test having seen it.

use operator_backend::stream::cursor::Presented;

/// The first word of a text that is an ephemeral token or a cursor.
pub(crate) fn leaked(text: &str) -> Option<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    text.split(|c| !is_part(c)).find(|word| is_token(word) || Presented::parse(word).is_some())
}

/// Tokens are UUIDs of version 8; the correlation ids in logs are of version 4.
fn is_token(word: &str) -> bool {
    let groups: Vec<&str> = word.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    lengths == [8, 4, 4, 4, 12]
        && groups[2].starts_with('8')
        && groups.iter().all(|group| group.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[test]
fn tokens_and_cursors_are_recognised_and_what_resembles_them_is_not() {
    for secret in [
        "01234567-89ab-8cde-8f01-23456789abcd",
        "1.AAAAAA.AAAAAA.AAAAAA.1763900000000-3.AAAAAA.AAAAAAAAAAAAAAAAAAAAAA",
    ] {
        assert_eq!(leaked(&format!(r#"{{"uri":"/x?token={secret}&a=b"}}"#)), Some(secret));
    }
    assert_eq!(leaked("01234567-89ab-4cde-8f01-23456789abcd 1763900000000-3 1.2.3 0.1.0"), None);
}
