//! One connection of a command, which asks a few things and goes.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_postgres::{AsyncMessage, Client};

use super::target::EngineTarget;
use super::{CHANNEL, EngineError};
use crate::tasks::Tasks;

/// How long making a connection may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a command waits for a statement.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(30);

/// One connection to the engine.
#[derive(Debug)]
pub struct EngineSession {
    client: Client,
    heard: Arc<AtomicU64>,
}

impl EngineSession {
    /// Connects, and listens to what is announced.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn connect(target: &EngineTarget, tasks: &Tasks) -> Result<Self, String> {
        let connected = tokio::time::timeout(CONNECT_TIME_MAX, target.connect_any()).await;
        let told = |_| format!("no connection within {} s", CONNECT_TIME_MAX.as_secs());
        let (client, mut connection) = connected.map_err(told)??;
        let heard = Arc::new(AtomicU64::new(0));
        let hears = heard.clone();
        tasks.spawn_until_stop(async move {
            while let Some(Ok(message)) = connection.next_message().await {
                if matches!(&message, AsyncMessage::Notification(told) if told.channel() == CHANNEL) {
                    hears.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        // Behind a pooler this is heard by nobody.
        let _told = client.batch_execute(&format!("listen {CHANNEL}")).await;
        Ok(Self { client, heard })
    }

    /// Number of announcements that were heard.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// The result of this statement, if it comes in time.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn timed<T>(
        &self,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(STATEMENT_TIME_MAX, statement).await {
            Ok(done) => done.map_err(|error| EngineError::of(&error)),
            Err(_) => Err(EngineError::Unclear(format!("no answer within {} s", STATEMENT_TIME_MAX.as_secs()).into())),
        }
    }
}

impl Deref for EngineSession {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}
