//! A bound on the total number of bytes that calls hold. Reservations are released on drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A budget of bytes.
pub(crate) struct Room {
    size: AtomicUsize,
    used: AtomicUsize,
}

/// A reservation in a [`Room`], released on drop.
pub(crate) struct Share {
    room: Arc<Room>,
    bytes: usize,
}

// === impl Room ===

impl Room {
    pub(crate) fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            size: AtomicUsize::new(size),
            used: AtomicUsize::new(0),
        })
    }

    /// Reserves bytes; `None` if they do not fit.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let size = self.size.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= size)
            })
            .ok()?;
        Some(Share {
            room: self.clone(),
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

// === impl Share ===

impl Share {
    /// Extends the reservation. Returns false, without a change, if the bytes do not fit.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let Some(mut more) = self.room.take(bytes) else {
            return false;
        };
        self.bytes += std::mem::take(&mut more.bytes);
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_never_exceed_the_bound_and_are_released() {
        let room = Room::new(10);
        let mut first = room.take(6).unwrap();
        assert!(room.take(5).is_none());
        assert!(first.grow(3));
        assert!(!first.grow(2));
        assert_eq!(room.used(), 9);
        drop(first);
        assert_eq!(room.used(), 0);
        assert!(room.take(usize::MAX).is_none());
        let held = room.take(8).unwrap();
        room.resize(4);
        assert!(room.take(1).is_none());
        drop(held);
        assert!(room.take(4).is_some() && room.take(5).is_none());
    }
}
