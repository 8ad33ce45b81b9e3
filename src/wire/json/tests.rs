//! Strings, numbers and skipping, against `core` and `serde_json`.

use proptest::prelude::*;

use super::{number::*, text, *};

/// The value that the two ways find, which must agree.
fn read<F: Float + std::fmt::Debug + PartialEq>(text: &str) -> F {
    let (slow, end) = float_slow::<F>(text.as_bytes(), 0).unwrap();
    assert_eq!(end, text.len(), "{text}");
    if let Some((fast, end)) = float::<F>(text.as_bytes(), 0) {
        assert_eq!(end, text.len(), "{text}");
        assert_eq!(fast, slow, "{text}");
        assert_eq!(format!("{fast:?}"), format!("{slow:?}"), "{text}");
    }
    slow
}

fn check_float(text: &str) {
    assert_eq!(Ok(read::<f32>(text)), text.parse::<f32>(), "{text}");
    assert_eq!(Ok(read::<f64>(text)), text.parse::<f64>(), "{text}");
}

/// Whether the fast way takes `text`; it must not give up on what clients write.
fn is_fast(text: &str) -> bool {
    float::<f32>(text.as_bytes(), 0).is_some()
}

#[test]
fn what_clients_write_goes_the_fast_way() {
    for text in [
        "0",
        "0.0",
        "-0.0",
        "1",
        "255",
        "0.1234",
        "123.4567",
        "0.12345678",
        "16777217.5",
        "1e-05",
        "0.10000000149011612",
        "0.0009765625123456789",
        "1700000000",
        "2.5e10",
        "-3.4e-10",
        "0.699999988079071",
    ] {
        assert!(is_fast(text), "{text}");
        check_float(text);
    }
}

#[test]
fn middles_between_floats_round_to_even() {
    for text in [
        "16777217",
        "16777219",
        "16777217.0000000001",
        "16777216.9999999999",
        "1.00000005960464477539",
        "1.000000059604644775390625",
        "1.00000017881393432617187499",
        "0.00000000000000000001",
        "3.4028235e38",
        "3.4028235677973366e38",
        "3.4028236e38",
        "1e-45",
        "7e-46",
        "1.17549435e-38",
        "9007199254740993",
        "9007199254740993.0",
        "12345678901234567890",
        "123456789012345678901234567890",
        "1e22",
        "1e23",
        "9999999999999999999e22",
        "0.000000000000000000000000000001",
        "1e400",
        "1e-400",
        "0e999999999999",
        "1.e5",
    ] {
        if text != "1.e5" {
            check_float(text);
        }
    }
}

#[test]
fn numbers_keep_the_grammar() {
    for bad in ["", "-", "01", "-01", "00", "1.", ".5", "1.e5", "1e", "1e+", "+1", "0x1", "a"] {
        let bytes = bad.as_bytes();
        let whole = |end: usize| end == bad.len();
        assert!(!scan_number(bytes, 0).is_ok_and(whole), "{bad}");
        assert!(!float::<f64>(bytes, 0).is_some_and(|(_, end)| whole(end)), "{bad}");
        assert!(!integer(bytes, 0).is_some_and(|(_, end)| whole(end)), "{bad}");
    }
}

/// Numbers of every make, the awkward ones often.
fn number_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u32>()
            .prop_map(f32::from_bits)
            .prop_filter("finite", |v| v.is_finite())
            .prop_flat_map(|v| prop_oneof![
                Just(format!("{v}")),
                Just(format!("{v:e}")),
                Just(format!("{}", f64::from(v))),
            ]),
        any::<u64>()
            .prop_map(f64::from_bits)
            .prop_filter("finite", |v| v.is_finite())
            .prop_flat_map(|v| prop_oneof![Just(format!("{v:?}")), Just(format!("{v:e}"))]),
        // The middle between two neighbouring FP32, and a little beside it.
        (1u32..0x7f00_0000, -2i64..=2).prop_map(|(bits, beside)| {
            let low = f64::from(f32::from_bits(bits));
            let high = f64::from(f32::from_bits(bits + 1));
            let middle = f64::midpoint(low, high);
            format!("{:?}", f64::from_bits(middle.to_bits().wrapping_add_signed(beside)))
        }),
        // Short ones with the middle written out in full.
        (1u32..1 << 24, 0i32..30).prop_map(|(mantissa, shift)| {
            format!("{}", (f64::from(mantissa) + 0.5) / f64::powi(2.0, shift))
        }),
        "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?",
        "-?[0-9]\\.[0-9]{1,9}",
        "-?(0|[1-9][0-9]{0,4})\\.[0-9]{12,19}",
        // The middle between two neighbouring FP64 in full, and its neighbours.
        (1u64 << 53..1 << 54, 0usize..4, -1i64..=1).prop_map(|(mantissa, shift, beside)| {
            let digits = (mantissa | 1) * 5u64.pow(u32::try_from(shift).unwrap());
            let mut text = digits.wrapping_add_signed(beside).to_string();
            text.insert(text.len() - shift, '.');
            text + "0"
        }),
        "(0|[1-9][0-9]{0,20})",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn floats_are_rounded_once(text in number_text()) {
        check_float(&text);
    }

    #[test]
    fn whole_numbers_agree_with_core(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9])?([eE][0-9])?") {
        if let Some((value, end)) = integer(text.as_bytes(), 0) {
            prop_assert_eq!(end, text.len());
            prop_assert_eq!(Ok(value), text.parse::<i64>());
        } else {
            let digits = text.trim_start_matches('-').len();
            prop_assert!(digits > 16 || text.contains(['.', 'e', 'E']), "{} is easy", text);
        }
    }

    #[test]
    fn floats_survive_being_written(bits in any::<u64>(), narrow in any::<u32>()) {
        let mut out = Vec::new();
        write_float(&mut out, f64::from_bits(bits));
        let text = std::str::from_utf8(&out).unwrap();
        if f64::from_bits(bits).is_finite() {
            prop_assert_eq!(read::<f64>(text).to_bits(), bits);
        }
        out.clear();
        write_float(&mut out, f32::from_bits(narrow));
        let text = std::str::from_utf8(&out).unwrap();
        if f32::from_bits(narrow).is_finite() {
            prop_assert_eq!(read::<f32>(text).to_bits(), narrow);
        }
    }

    #[test]
    fn strings_survive_being_written(string in any::<String>()) {
        let mut out = Vec::new();
        text::write_string(&mut out, &string);
        let (read, end) = text::string(&out, 0).unwrap();
        prop_assert_eq!((&*read, end), (&*string, out.len()));
        prop_assert_eq!(text::skip(&out, 0), Ok(end));
        prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), string);
    }

    #[test]
    fn strings_agree_with_serde_json(
        inner in proptest::collection::vec(
            prop_oneof![
                Just(b"\\".to_vec()), Just(b"\"".to_vec()), Just(b"\\u".to_vec()),
                Just(b"\\ud83d\\ude00".to_vec()), Just(b"\\udead".to_vec()), Just(b"\\n".to_vec()),
                Just("é😀".as_bytes().to_vec()), any::<u8>().prop_map(|byte| vec![byte]),
                "[ -~]{0,12}".prop_map(String::into_bytes),
            ],
            0..12,
        )
    ) {
        let text = [b"\"", &inner.concat()[..], b"\""].concat();
        let ours = text::string(&text, 0).ok().filter(|(_, end)| *end == text.len());
        let theirs = serde_json::from_slice::<String>(&text).ok();
        prop_assert_eq!(ours.map(|(string, _)| string.into_owned()), theirs);
        let skipped = text::skip(&text, 0).is_ok_and(|end| end == text.len());
        prop_assert_eq!(skipped, serde_json::from_slice::<String>(&text).is_ok());
    }

    #[test]
    fn skipping_agrees_with_serde_json(
        pieces in proptest::collection::vec(
            prop_oneof![
                Just("["), Just("]"), Just("{"), Just("}"), Just(","), Just(":"), Just("\"a\""),
                Just("\"\\u00e9\":"), Just("1"), Just("-0.5e3"), Just("true"), Just("null"), Just(" "),
                Just("[]"), Just("{}"), Just("[1,2]"), Just("{\"a\":[{}]}"), Just("01"), Just("nul"),
            ],
            1..12,
        )
    ) {
        let text = pieces.concat();
        let mut cursor = Cursor::new(text.as_bytes(), 64);
        let ours = cursor.skip_value().and_then(|()| cursor.finish()).is_ok();
        prop_assert_eq!(ours, serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
    }
}
