//! What a list of flows proves about one CreateFlow whose outcome is unknown.

use std::collections::HashSet;

use tokio::time::Instant;

use super::BETWEEN_SWEEPS;
use super::names::is_near;
use crate::acs::flow_pages::Listing;
use crate::acs::flows::ListedFlow;

/// Why a flow of the wanted name is not the wanted one.
pub(crate) const FLOW_OF_ANOTHER: &str = "the flow of this name belongs to another order";

/// The flow that is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) categories: &'a [String],
}

/// The flows that have the wanted name, byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate<'a> {
    None,
    One(&'a ListedFlow),
    Several,
}

/// What GetFlow says about the one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowStatus {
    /// It was not asked yet.
    NotAsked,
    /// `DRAFT`, as after CreateFlow.
    Draft,
    /// Another status: the flow is older, or in use.
    Other,
}

/// What the other records say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Others {
    /// The candidate is the flow of another record.
    pub(crate) have_flow: bool,
    /// Another record of the same name and space is under way; its end will say more.
    pub(crate) are_open: bool,
    /// Another record of the same name and space has an unknown outcome, too.
    pub(crate) are_unknown: bool,
}

/// Everything that is known after a look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) wanted: Wanted<'a>,
    pub(crate) listing: &'a Listing,
    pub(crate) status: FlowStatus,
    pub(crate) others: Others,
    /// FlowIds that other orders have created in this space, also those without a record. A list that
    /// shows none of them proves no absence.
    pub(crate) made_here: &'a [Box<str>],
    /// When the listing began.
    pub(crate) began: Instant,
    /// From then on no request of the order can be executed any more.
    pub(crate) settled_at: Instant,
    /// The end of an earlier sweep that showed the flow's absence.
    pub(crate) earlier_sweep: Option<Instant>,
}

/// What follows from a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// CAMS has created this flow.
    Created(Box<str>),
    /// This is the flow if GetFlow shows that it is a draft.
    Found(Box<str>),
    /// The flow was not found, which proves nothing yet.
    Missing {
        /// Whether another sweep like this one would prove that there is no flow.
        shows_absence: bool,
    },
    /// Flows were found of which none is certainly the one: the names are not unique.
    Ambiguous(&'static str),
    /// CAMS has not created the flow, and will not.
    Absent,
}

/// The id of the one flow with the wanted name, if there is one.
pub(crate) fn candidate_id<'a>(wanted: Wanted<'_>, listing: &'a Listing) -> Option<&'a str> {
    match candidate(wanted, listing) {
        Candidate::One(flow) => Some(&flow.id),
        Candidate::None | Candidate::Several => None,
    }
}

/// Finds the flows with the wanted name.
fn candidate<'a>(wanted: Wanted<'_>, listing: &'a Listing) -> Candidate<'a> {
    let mut same = listing
        .flows
        .iter()
        .filter(|flow| *flow.name == *wanted.name);
    match (same.next(), same.next()) {
        (None, _) => Candidate::None,
        (Some(flow), None) => Candidate::One(flow),
        (Some(_), Some(_)) => Candidate::Several,
    }
}

/// Decides what the evidence proves.
pub(crate) fn decide(evidence: &Evidence<'_>) -> Verdict {
    match candidate(evidence.wanted, evidence.listing) {
        Candidate::Several => Verdict::Ambiguous("several flows have this name"),
        Candidate::One(flow) => evidence.of_one(flow),
        Candidate::None => evidence.of_none(),
    }
}

// === impl Evidence ===

impl Evidence<'_> {
    fn of_one(&self, flow: &ListedFlow) -> Verdict {
        let categories: HashSet<_> = self.wanted.categories.iter().collect();
        if categories != flow.categories.iter().collect() {
            Verdict::Ambiguous("a flow of this name has other categories")
        } else if self.others.have_flow || self.made_here.contains(&flow.id) {
            Verdict::Ambiguous(FLOW_OF_ANOTHER)
        } else if self.others.are_unknown {
            Verdict::Ambiguous("another order of this name has an unknown outcome, too")
        } else if self.others.are_open || !self.listing.is_whole {
            // Later, the list or the other order may show a second flow.
            Verdict::MISSING
        } else {
            match self.status {
                FlowStatus::Draft => Verdict::Created(flow.id.clone()),
                FlowStatus::Other => Verdict::Ambiguous("the flow of this name is no draft"),
                FlowStatus::NotAsked => Verdict::Found(flow.id.clone()),
            }
        }
    }

    fn of_none(&self) -> Verdict {
        if !self.shows_absence() {
            return Verdict::MISSING;
        }
        let is_second = self
            .earlier_sweep
            .is_some_and(|earlier| self.began >= earlier + BETWEEN_SWEEPS);
        if is_second {
            Verdict::Absent
        } else {
            Verdict::Missing {
                shows_absence: true,
            }
        }
    }

    /// Whether the listing is one of the two that prove together that there is no flow.
    fn shows_absence(&self) -> bool {
        let Listing {
            flows,
            is_whole,
            is_unfiltered,
        } = self.listing;
        let shows_known = || flows.iter().any(|flow| self.made_here.contains(&flow.id));
        let shows_near = || {
            let own = self.wanted.name;
            flows.iter().any(|flow| is_near(&flow.name, own))
        };
        *is_whole
            && *is_unfiltered
            && self.began >= self.settled_at
            && !self.others.are_open
            && shows_known()
            && !shows_near()
    }
}

// === impl Verdict ===

impl Verdict {
    const MISSING: Self = Self::Missing {
        shows_absence: false,
    };
}

#[cfg(test)]
mod tests;
