//! What the lines of one attempt say together, for a restart and for a rotation.

use super::line::{Outcome, ResolvedAs};

/// What is known of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// CAMS has created its flow.
    Created,
    /// It has created nothing, or has been forgotten.
    NotCreated,
    /// CAMS may have created its flow.
    Unknown,
}

/// Judges an attempt by its end and by how its unknown outcome has ended. Each comes with whether it has a FlowId.
pub(crate) fn known(done: Option<(Outcome, bool)>, resolved: Option<(ResolvedAs, bool)>) -> Known {
    match (done, resolved) {
        // Nothing that another process has concluded meanwhile outweighs CAMS's answer.
        (Some((Outcome::Ok, true)), _) => Known::Created,
        (_, Some((result, has_flow))) if result != ResolvedAs::Ambiguous => {
            if has_flow {
                Known::Created
            } else {
                Known::NotCreated
            }
        }
        (None | Some((Outcome::Ok | Outcome::Unknown, _)), _) => Known::Unknown,
        (Some(_), _) => Known::NotCreated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_outweighs_a_conclusion_and_a_conclusion_the_lack_of_an_answer() {
        let created = Some((Outcome::Ok, true));
        let lost = [
            None,
            Some((Outcome::Unknown, false)),
            Some((Outcome::Ok, false)),
        ];
        let found = Some((ResolvedAs::Created, true));
        let said = Some((ResolvedAs::Settled, false));
        let ambiguous = Some((ResolvedAs::Ambiguous, false));
        for resolved in [None, found, said, ambiguous] {
            assert_eq!(known(created, resolved), Known::Created);
        }
        for done in lost {
            assert_eq!(known(done, None), Known::Unknown);
            assert_eq!(known(done, ambiguous), Known::Unknown);
            assert_eq!(known(done, found), Known::Created);
            assert_eq!(known(done, said), Known::NotCreated);
        }
        let refused = Some((Outcome::UpstreamError, false));
        for (resolved, expected) in [
            (None, Known::NotCreated),
            (said, Known::NotCreated),
            // A look of another process has found it: CAMS has created it, whatever it has answered.
            (found, Known::Created),
        ] {
            assert_eq!(known(refused, resolved), expected);
        }
    }
}
