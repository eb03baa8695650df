//! Carries out one kind of order on one machine, beside the loop. A VMM or an agent that hangs delays only its own
//! orders of that kind.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

/// The delay before an order that was not carried out is retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Carries out one order at a time. A newer order replaces one that has not started.
#[derive(Clone, Debug)]
pub(crate) struct LatestOnly<T>(watch::Sender<T>);

impl<T: Clone + Send + Sync + 'static> LatestOnly<T> {
    /// Starts the actuator as a task in `tasks`. `initial` is not carried out. `carry_out` returns whether the
    /// order is done; an order that is not done is retried until a newer one arrives.
    pub(crate) fn new<F>(
        tasks: &mut JoinSet<()>,
        initial: T,
        mut carry_out: impl FnMut(T) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = bool> + Send,
    {
        let (wanted, mut orders) = watch::channel(initial);
        tasks.spawn(async move {
            // The sender is dropped with the machine.
            while orders.changed().await.is_ok() {
                loop {
                    let order = orders.borrow_and_update().clone();
                    if carry_out(order).await {
                        break;
                    }
                    // A newer order is carried out at once.
                    if let Ok(Err(_)) = tokio::time::timeout(RETRY_DELAY, orders.changed()).await {
                        return;
                    }
                }
            }
        });
        Self(wanted)
    }

    /// Sets the order to carry out.
    pub(crate) fn order(&self, order: T) {
        self.0.send_replace(order);
    }

    /// Repeats the last order.
    pub(crate) fn repeat(&self) {
        self.0.send_modify(|_| {});
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// An actuator whose work takes 50 ms and fails while `broken` is true, and the orders that it has started.
    fn actuator(tasks: &mut JoinSet<()>, broken: Arc<Mutex<bool>>) -> (LatestOnly<u32>, Arc<Mutex<Vec<u32>>>) {
        let begun: Arc<Mutex<Vec<u32>>> = Arc::default();
        let log = begun.clone();
        let actuator = LatestOnly::new(tasks, 0, move |order| {
            log.lock().unwrap().push(order);
            let broken = broken.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                !*broken.lock().unwrap()
            }
        });
        (actuator, begun)
    }

    async fn until(begun: &Mutex<Vec<u32>>, expected: &[u32]) {
        let reached = async {
            while *begun.lock().unwrap() != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
        assert!(reached.is_ok(), "{:?} instead of {expected:?}", begun.lock().unwrap());
    }

    #[tokio::test]
    async fn the_newest_order_counts_and_one_is_carried_out_at_a_time() {
        let mut tasks = JoinSet::new();
        let (actuator, begun) = actuator(&mut tasks, Arc::default());
        actuator.order(1);
        until(&begun, &[1]).await;
        [2, 3, 4].into_iter().for_each(|order| actuator.order(order));
        until(&begun, &[1, 4]).await;
        actuator.repeat();
        until(&begun, &[1, 4, 4]).await;
        drop(actuator);
        while tasks.join_next().await.is_some() {}
    }

    #[tokio::test]
    async fn a_failure_is_retried_until_a_newer_request() {
        let mut tasks = JoinSet::new();
        let broken = Arc::new(Mutex::new(true));
        let (actuator, begun) = actuator(&mut tasks, broken.clone());
        actuator.order(1);
        until(&begun, &[1, 1]).await;
        *broken.lock().unwrap() = false;
        actuator.order(2);
        until(&begun, &[1, 1, 2]).await;
        drop(actuator);
        while tasks.join_next().await.is_some() {}
    }
}
