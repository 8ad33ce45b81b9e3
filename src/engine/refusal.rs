//! Plain sentences for what ONNX Runtime says in C++'s words when it refuses a model.
//!
//! The numbers are the library's own: which versions it reads depends on the library that was found, so none stands
//! here. What is not understood is passed on as it is.
//!
//! Not here: what our own reader refuses before any engine sees it (`onnx`).

use super::{LoadError, onnx::Summary, shortened};

/// The first operator set that ONNX Runtime has kernels for.
///
/// Source: ONNX Runtime, "Compatibility": all opsets from 7 on.
const OPSET_MIN: i64 = 7;

/// Reads the refusal of an engine; `library` is its name and version.
pub(super) fn explained(
    engine: &'static str,
    library: String,
    summary: &Summary,
    text: &str,
) -> LoadError {
    if let Some(locale) = missing_locale(text) {
        return LoadError::Locale { locale };
    }
    if let Some((found, highest)) = ir_version(text) {
        return LoadError::IrVersion { library, found, highest };
    }
    if let Some((found, domain, highest)) = opset(text) {
        return LoadError::Opset { library, domain, found, highest };
    }
    if let Some(operator) = missing_kernel(text)
        && let Some(opset) = own_opset(summary).filter(|version| *version < OPSET_MIN)
    {
        return LoadError::OldOpset { library, operator, opset, lowest: OPSET_MIN };
    }
    LoadError::Refused { engine, reason: shortened(text) }
}

/// The version of ONNX's own operator set that a model imports.
fn own_opset(summary: &Summary) -> Option<i64> {
    let is_own = |domain: &str| matches!(domain, "" | "ai.onnx");
    summary.opsets.iter().find(|(domain, _)| is_own(domain)).map(|(_, version)| *version)
}

/// The IR version of the file and the highest one that the library reads.
fn ir_version(text: &str) -> Option<(i64, i64)> {
    let (_, rest) = text.split_once("Unsupported model IR version:")?;
    let (_, highest) = rest.split_once("max supported IR version:")?;
    Some((number(rest)?, number(highest)?))
}

/// The version of an operator set, its domain and the highest version that the library reads.
fn opset(text: &str) -> Option<(i64, String, i64)> {
    let (before, rest) = text.split_once("is under development and support for this is limited")?;
    let (_, found) = before.rsplit_once("Opset")?;
    let (_, rest) = rest.split_once("official support for domain")?;
    let (domain, highest) = rest.split_once("is till opset")?;
    Some((number(found)?, domain.trim().to_owned(), number(highest)?))
}

/// The operator that the library has no kernel for.
fn missing_kernel(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("Could not find an implementation for")?;
    let operator: String =
        rest.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
    (!operator.is_empty()).then_some(operator)
}

/// The number that a text begins with.
fn number(text: &str) -> Option<i64> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// The locale that a text operator asked for in vain.
fn missing_locale(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    if !lower.contains("locale") {
        return None;
    }
    let named = text
        .split([':', ' ', '\'', '"', ','])
        .find(|word| word.contains('_') && word.contains("UTF"));
    Some(named.unwrap_or("en_US.UTF-8").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, opset: i64) -> String {
        let summary = Summary { opsets: vec![(String::new(), opset)], ..Summary::default() };
        explained("onnxruntime", "ONNX Runtime 9.9.9".to_owned(), &summary, text).to_string()
    }

    #[test]
    fn versions_are_read_from_what_the_library_says() {
        let ir = "/src/core/graph/model.cc:256 Model::Model(onnx::ModelProto&&) Unsupported model IR version: 99, max \
                  supported IR version: 98\n";
        assert!(
            said(ir, 17)
                .starts_with("the model has IR version 99, and ONNX Runtime 9.9.9 reads up to 98;")
        );
        let opset = "ONNX Runtime only *guarantees* support for released opsets. Opset 7 is under development and \
                     support for this is limited. Current official support for domain ai.onnx.ml is till opset 5.\n";
        let expected = "the model imports version 7 of operator set ai.onnx.ml, and ONNX Runtime 9.9.9 reads up to 5;";
        assert!(said(opset, 17).starts_with(expected), "{}", said(opset, 17));
    }

    #[test]
    fn a_missing_kernel_is_told_as_an_old_opset_only_where_it_is_one() {
        let text = "Could not find an implementation for Abs(1) node with name 'a'";
        assert!(
            said(text, 1).starts_with("the model's `Abs` is one of opset 1 of ai.onnx, and"),
            "{}",
            said(text, 1)
        );
        assert_eq!(said(text, 21), format!("onnxruntime cannot load the model: {text}"));
    }

    #[test]
    fn what_is_not_understood_is_passed_on() {
        for text in [
            "Unsupported model IR version: many, max supported IR version: 13",
            "Unsupported model IR version: 99",
            "Opset x is under development and support for this is limited",
            "is under development and support for this is limited",
            "Could not find an implementation for (1)",
            "Unsupported model IR version: 99999999999999999999, max supported IR version: 1",
        ] {
            assert_eq!(said(text, 1), format!("onnxruntime cannot load the model: {text}"));
        }
    }
}
