#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| makegate::fuzz::request_frames(bytes));
