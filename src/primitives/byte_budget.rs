//! A bound on the total number of bytes that calls hold. Reservations are released on drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct ByteBudget {
    size: AtomicUsize,
    used: AtomicUsize,
}

/// A reservation in a [`ByteBudget`], released on drop.
pub(crate) struct Reservation {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

// === impl ByteBudget ===

impl ByteBudget {
    pub(crate) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            size: AtomicUsize::new(size),
            used: AtomicUsize::new(0),
        })
    }

    /// Reserves bytes; `None` if they do not fit.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let size = self.size.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= size)
            })
            .ok()?;
        Some(Reservation {
            budget: self.clone(),
            bytes,
        })
    }

    /// Changes the bound. Existing reservations are kept, even above the new bound.
    pub(crate) fn resize(&self, size: usize) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

// === impl Reservation ===

impl Reservation {
    /// Extends the reservation. Returns false, without a change, if the bytes do not fit.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let Some(mut more) = self.budget.take(bytes) else {
            return false;
        };
        self.bytes += std::mem::take(&mut more.bytes);
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_never_exceed_the_bound_and_are_released() {
        let budget = ByteBudget::new(10);
        let mut first = budget.take(6).unwrap();
        assert!(budget.take(5).is_none());
        assert!(first.grow(3));
        assert!(!first.grow(2));
        assert_eq!(budget.used(), 9);
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(budget.take(usize::MAX).is_none());
        let held = budget.take(8).unwrap();
        budget.resize(4);
        assert!(budget.take(1).is_none());
        drop(held);
        assert!(budget.take(4).is_some() && budget.take(5).is_none());
    }
}
