//! Reads all pages of a ListFlow. CAMS documents neither the largest page nor what a short page
//! means, so the walk ends only with a page that shows no new flow.

use std::collections::HashMap;

use super::flows::{self, ListedFlow};

/// Flows per page, to begin with.
pub(crate) const LARGE_PAGE: u32 = 100;

/// Flows per page if CAMS refuses large pages: the size in its documentation's example.
pub(crate) const SMALL_PAGE: u32 = 20;

/// The smallest page that can be CAMS's own bound rather than the last page.
const LEAST_BOUND: usize = 10;

/// Largest number of pages of a walk.
const MAX_PAGES: u32 = 50;

/// A walk through all flows of a space, or through those of a name.
pub(crate) struct Walk {
    space: Box<str>,
    /// The filter; `None` shows all flows of the space.
    name: Option<Box<str>>,
    size: u32,
    /// Whether CAMS has refused large pages.
    is_refused: bool,
    /// The next page; the first is 1.
    index: u32,
    flows: HashMap<Box<str>, ListedFlow>,
    /// A flow has changed during the walk, so flows may have moved between pages.
    has_changed: bool,
}

/// What the walk needs next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another page.
    Page,
    /// Nothing: these are the flows.
    End(Listing),
}

/// The flows that a walk has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) flows: Vec<ListedFlow>,
    /// Whether every page was read, and no flow changed meanwhile.
    pub(crate) is_whole: bool,
    /// Whether it shows all names.
    pub(crate) is_unfiltered: bool,
}

// === impl Walk ===

impl Walk {
    /// `size` is [`LARGE_PAGE`], or [`SMALL_PAGE`] if CAMS has refused that.
    pub(crate) fn new(space: &str, name: Option<&str>, size: u32) -> Self {
        Self {
            space: space.into(),
            name: name.map(Into::into),
            size,
            is_refused: size <= SMALL_PAGE,
            index: 1,
            flows: HashMap::new(),
            has_changed: false,
        }
    }

    /// The parameters of the next page.
    pub(crate) fn params(&self) -> Vec<(String, String)> {
        flows::list_params(&self.space, self.name.as_deref(), self.index, self.size)
    }

    /// The size of pages that CAMS has not refused.
    pub(crate) fn accepted_size(&self) -> u32 {
        if self.is_refused {
            SMALL_PAGE
        } else {
            LARGE_PAGE
        }
    }

    /// CAMS has refused the page. Returns whether the same page can be asked for with a smaller
    /// size.
    pub(crate) fn refused(&mut self) -> bool {
        let is_first = self.index == 1 && self.size > SMALL_PAGE;
        if is_first {
            self.size = SMALL_PAGE;
            self.is_refused = true;
        }
        is_first
    }

    /// CAMS has answered with the next page.
    pub(crate) fn page(&mut self, page: Vec<ListedFlow>) -> Next {
        self.follow_bound(page.len());
        let mut has_new = false;
        for flow in page {
            match self.flows.get(&flow.id) {
                Some(known) => self.has_changed |= *known != flow,
                None => {
                    has_new = true;
                    self.flows.insert(flow.id.clone(), flow);
                }
            }
        }
        if has_new && self.index < MAX_PAGES {
            self.index += 1;
            return Next::Page;
        }
        Next::End(self.end(!has_new))
    }

    /// If CAMS bounds pages, it may still count the next page's begin in pages of the size that was
    /// asked for: then asking for its own bound skips no flow.
    fn follow_bound(&mut self, len: usize) {
        let is_bound = self.index == 1 && len >= LEAST_BOUND;
        if let (true, Ok(len)) = (is_bound, u32::try_from(len)) {
            self.size = self.size.min(len);
        }
    }

    fn end(&mut self, is_last: bool) -> Listing {
        let mut flows: Vec<_> = std::mem::take(&mut self.flows).into_values().collect();
        flows.sort_by(|one, other| one.id.cmp(&other.id));
        Listing {
            flows,
            is_whole: is_last && !self.has_changed,
            is_unfiltered: self.name.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(number: usize) -> ListedFlow {
        ListedFlow {
            id: format!("{number:04}").into(),
            name: "n".into(),
            categories: Vec::new(),
        }
    }

    /// A CAMS with this number of flows, whose pages have at most `bound` flows. If `skips`, it
    /// counts the begin of a page in sizes that were asked for.
    struct Cams {
        flows: usize,
        bound: usize,
        skips: bool,
    }

    impl Cams {
        /// Returns the listing and the number of pages that were asked for.
        fn walk(&self) -> (Listing, u32) {
            let mut walk = Walk::new("s", None, LARGE_PAGE);
            for pages in 1.. {
                let asked = walk.size as usize;
                let size = asked.min(self.bound);
                let stride = if self.skips { asked } else { size };
                let first = (walk.index as usize - 1) * stride;
                let last = (first + size).min(self.flows);
                let page = (first.min(last)..last).map(flow).collect();
                if let Next::End(listing) = walk.page(page) {
                    return (listing, pages);
                }
            }
            unreachable!()
        }
    }

    #[test]
    fn a_walk_ends_with_a_page_without_a_new_flow() {
        for (flows, bound, pages) in [
            (0, 100, 1),
            (1, 100, 2),
            (100, 100, 2),
            (130, 100, 3),
            (130, 20, 8),
            (5, 5, 2),
        ] {
            for skips in [true, false] {
                let cams = Cams {
                    flows,
                    bound,
                    skips,
                };
                let (listing, asked) = cams.walk();
                assert_eq!(
                    (listing.flows.len(), asked, listing.is_whole),
                    (flows, pages, true),
                    "{flows} {bound} {skips}"
                );
                assert!(listing.is_unfiltered);
            }
        }
    }

    #[test]
    fn a_walk_of_more_than_50_pages_is_not_whole() {
        let cams = Cams {
            flows: 2000,
            bound: 20,
            skips: false,
        };
        let (listing, asked) = cams.walk();
        assert_eq!((listing.flows.len(), asked), (1000, 50));
        assert!(!listing.is_whole);
    }

    #[test]
    fn a_server_that_ignores_the_index_ends_the_walk() {
        let mut walk = Walk::new("s", Some("n"), LARGE_PAGE);
        assert_eq!(walk.page(vec![flow(1), flow(2)]), Next::Page);
        let listing = Listing {
            flows: vec![flow(1), flow(2)],
            is_whole: true,
            is_unfiltered: false,
        };
        assert_eq!(walk.page(vec![flow(2), flow(1)]), Next::End(listing));
    }

    #[test]
    fn a_flow_that_changes_during_the_walk_makes_it_incomplete() {
        let mut walk = Walk::new("s", None, LARGE_PAGE);
        assert_eq!(walk.page(vec![flow(1)]), Next::Page);
        let renamed = ListedFlow {
            name: "m".into(),
            ..flow(1)
        };
        let Next::End(listing) = walk.page(vec![renamed]) else {
            panic!("no new flow");
        };
        assert!(!listing.is_whole);
    }

    #[test]
    fn a_refused_size_is_replaced_once() {
        let mut walk = Walk::new("s", None, LARGE_PAGE);
        assert!(walk.refused());
        assert_eq!((walk.size, walk.accepted_size()), (SMALL_PAGE, SMALL_PAGE));
        assert!(!walk.refused(), "the small one is refused, too");
        let mut walk = Walk::new("s", None, LARGE_PAGE);
        walk.page((0..100).map(flow).collect());
        assert!(!walk.refused(), "the size was accepted before");
    }
}
