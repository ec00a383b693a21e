//! As many orders as a shop can take: a fixed number of customers, each of whom orders again as soon as he is served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shared::clock;

use crate::client::Client;
use crate::trouble::Trouble;

const CUSTOMERS: usize = 8;

/// Orders accepted in a second.
///
/// # Errors
/// An order was not accepted.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a few seconds are far below 2^52"
)]
pub(crate) async fn orders_per_second(shop: SocketAddr, lasting: Duration) -> Result<f64, Trouble> {
    let client = Arc::new(Client::new(shop));
    let begin = clock::now();
    let until = begin + lasting;
    let customers: Vec<_> = (0..CUSTOMERS)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                let mut accepted = 0_u64;
                while clock::now() < until {
                    let order = client.post("/order", r#"{"item":"tea"}"#, Duration::from_secs(10));
                    match order.await {
                        Ok(answer) if answer.status.as_u16() == 201 => accepted += 1,
                        other => return Err(Trouble::Nonsense(format!("order: {other:?}"))),
                    }
                }
                Ok(accepted)
            })
        })
        .collect();
    let mut accepted = 0;
    for customer in customers {
        let ended = customer.await;
        accepted += ended.map_err(|error| Trouble::Nonsense(error.to_string()))??;
    }
    Ok(accepted as f64 / (clock::now() - begin).as_secs_f64())
}
