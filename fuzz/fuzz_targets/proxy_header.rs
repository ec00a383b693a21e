#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy::trial::proxy_header(bytes));
