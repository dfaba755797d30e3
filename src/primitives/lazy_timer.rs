//! A timer for times that are set again and again and seldom come, such as a time-out of each request.

use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that stays registered while its time is moved. To register one for each time costs more
/// than to be woken once in a while for an earlier one.
#[derive(Default)]
pub(crate) struct LazyTimer {
    /// Created when it is first polled.
    sleep: Option<Pin<Box<Sleep>>>,
}

// === impl LazyTimer ===

impl LazyTimer {
    /// Whether this time has come. If not, the task is woken at it, and possibly earlier.
    pub(crate) fn has_come(&mut self, time: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(time)));
        if sleep.deadline() > time {
            sleep.as_mut().reset(time);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= time {
                return true;
            }
            sleep.as_mut().reset(time);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    async fn wait(timer: &mut LazyTimer, time: Instant) {
        poll_fn(|cx| match timer.has_come(time, cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_comes_after_the_timer_was_set_for_an_earlier_or_a_later_one() {
        let mut timer = LazyTimer::default();
        let start = Instant::now();
        let mut last = start;
        for (abandoned, seconds) in [(5, 9), (30, 12), (13, 20), (1, 20), (90, 25)] {
            let abandoned = start + Duration::from_secs(abandoned);
            let has_come = poll_fn(|cx| Poll::Ready(timer.has_come(abandoned, cx))).await;
            assert_eq!(has_come, abandoned <= last);
            last = start + Duration::from_secs(seconds);
            wait(&mut timer, last).await;
            assert_eq!(Instant::now(), last);
        }
    }
}
