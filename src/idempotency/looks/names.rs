//! Names that may belong to the same flow although their bytes differ, because CAMS may normalize or
//! cut a name. They prove nothing, but while one exists, the absence of a flow is not proven either.

use icu_normalizer::ComposingNormalizerBorrowed;

/// Whether a listed name could be what CAMS has made of `own`: equal after trimming, case folding
/// and Unicode normalization (NFC), or the beginning of it.
pub(super) fn is_near(listed: &str, own: &str) -> bool {
    own.starts_with(listed) || folded(own).starts_with(&folded(listed))
}

/// White space is reduced to single blanks. The way by upper case also folds letters that have
/// several lower-case forms.
fn folded(name: &str) -> String {
    let words: Vec<_> = name.split_whitespace().collect();
    let cased = words.join(" ").to_uppercase().to_lowercase();
    let normalizer = ComposingNormalizerBorrowed::new_nfc();
    normalizer.normalize(&cased).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cams_could_make_of_a_name_is_near() {
        for (listed, own, expected) in [
            ("Welcome", "Welcome", true),
            ("welcome ", "Welcome", true),
            ("\u{a0}WELCOME\t", "Welcome", true),
            ("Welcome  home", "Welcome home", true),
            ("Caf\u{e9}", "Cafe\u{301}", true),
            ("CAFE\u{301}", "caf\u{e9}", true),
            ("STRASSE", "stra\u{df}e", true),
            ("\u{3a3}\u{391}\u{3a3}", "\u{3c3}\u{3b1}\u{3c2}", true),
            ("Welc", "Welcome", true),
            ("welc", "Welcome", true),
            ("", "Welcome", true),
            ("Welcome2", "Welcome", false),
            ("elcome", "Welcome", false),
            ("Other", "Welcome", false),
            ("Wel come", "Welcome", false),
        ] {
            assert_eq!(is_near(listed, own), expected, "{listed:?} {own:?}");
        }
    }
}
