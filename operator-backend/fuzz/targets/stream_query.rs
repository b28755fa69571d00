//! Any query of a stream request: no panic, and equal wishes have one text.
#![no_main]

use operator_backend::stream::filter::Filter;

libfuzzer_sys::fuzz_target!(|query: &str| {
    let Ok(uri) = format!("/s?{query}").parse() else { return };
    if let Ok((filter, _)) = Filter::of(&uri) {
        assert_eq!(filter.canonical().matches(';').count(), 2);
    }
});
