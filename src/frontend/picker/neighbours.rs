//! What an instance that starts is to bring before it answers, by the word of others: of instances, which tell what they have,
//! or of the picker, which tells what of the fleet would be the asker's. Nobody is trusted further than for a name to try.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http::{HeaderValue, Method};

use super::super::percent;
use super::client::Instance;
use super::digest;
use crate::error::{Error, Result};
use crate::picker::digest::Held;
use crate::picker::share::in_turn;

/// How long a name may take to be looked up, and a neighbour to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Neighbours that are asked at most: what they have differs little from what more would tell.
const MOST_NEIGHBOURS: usize = 16;

/// Neighbours that are asked at a time: each may tell up to [`digest::DIGEST_BYTES`].
const AT_A_TIME: usize = 4;

/// Whom to ask, and for how much.
#[derive(Clone, Debug)]
pub struct Neighbours {
    /// `HOST:PORT` of instances or a picker; a name stands for all its addresses.
    pub names: Vec<String>,
    /// Models at most.
    pub models: usize,
    /// What to say to instances that want a token.
    pub token: Option<HeaderValue>,
    /// The port that we are asked at ourselves.
    pub port: Option<u16>,
}

impl Neighbours {
    /// The models to bring, those that matter most first. Who cannot be asked, or says nothing of use, is a line in the log.
    pub async fn hottest(&self) -> Vec<Arc<str>> {
        let addresses = self.addresses().await;
        let asked = addresses.into_iter().map(|address| async move {
            let told = self.ask(address).await;
            told.inspect_err(|error| {
                let error = error.report();
                tracing::warn!(neighbour = %address, error, "does not say what it has: nothing of it is brought");
            })
        });
        let told: Vec<_> = futures_util::stream::iter(asked).buffered(AT_A_TIME).collect().await;
        let lists: Vec<_> = told.into_iter().filter_map(Result::ok).collect();
        in_turn(&lists, self.models)
    }

    async fn addresses(&self) -> Vec<SocketAddr> {
        let look_up = |name: &String| {
            let name = name.clone();
            async move {
                let found = tokio::time::timeout(ANSWER, tokio::net::lookup_host(&name)).await;
                match found.map_err(std::io::Error::from).flatten() {
                    Ok(found) => found.take(MOST_NEIGHBOURS).collect(),
                    Err(error) => {
                        tracing::warn!(neighbour = name, %error, "cannot be looked up: nothing of it is brought");
                        Vec::new()
                    }
                }
            }
        };
        let found = futures_util::future::join_all(self.names.iter().map(look_up)).await;
        // One of each name in turn, so that the bound leaves none out.
        in_turn(&found, MOST_NEIGHBOURS)
    }

    /// What one has, those that it answered most first.
    async fn ask(&self, address: SocketAddr) -> Result<Vec<Arc<str>>> {
        let mut instance = Instance::at(address.to_string(), self.token.clone());
        let seen_at = instance.seen_at().await.map_err(Error::from)?;
        let own = self.port.map(|port| SocketAddr::new(seen_at, port));
        if own == Some(address) {
            // A name that stands for all stands for us too.
            return Ok(Vec::new());
        }
        let path = match own {
            Some(own) => format!("/v1/digest?for={}", percent::encode(&own.to_string())),
            None => "/v1/digest".to_owned(),
        };
        let answer = instance.ask(Method::GET, &path, ANSWER).await.map_err(Error::from)?;
        let mut rows = digest::parse(&answer)?.rows;
        rows.retain(|row| row.held == Held::Ready);
        rows.sort_by_key(|row| std::cmp::Reverse(row.uses));
        rows.truncate(self.models);
        Ok(rows.into_iter().map(|row| row.model).collect())
    }
}
