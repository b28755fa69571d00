//! Any first bytes of a connection: no panic, and a head is never longer than what was read.
#![no_main]

use operator_backend::stream::head::{Head, parse};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Head::Request(parts, length) = parse(bytes) {
        assert!(length <= bytes.len());
        // The whole head is what makes it whole.
        assert!(matches!(parse(&bytes[..length - 1]), Head::Partial));
        let _ = operator_backend::stream::filter::Filter::of(&parts.uri);
    }
});
