//! The button and the LED: a thread that waits for presses and shows what the daemon does.

use std::sync::mpsc::SyncSender;

use super::{Message, ServeError};
use crate::button::{Settings, State};

/// Shows states on the LED, if there is one.
#[derive(Debug)]
pub(super) struct Shown {
    #[cfg_attr(
        not(all(feature = "gpio", target_os = "linux")),
        allow(dead_code, reason = "nothing reads it in such a build")
    )]
    state: std::sync::Arc<std::sync::Mutex<Option<State>>>,
}

impl Shown {
    /// From the next look on.
    pub(super) fn show(&self, state: State) {
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(state);
    }
}

/// Takes the lines, and hands presses to `to`: short, that was right; long, that was wrong.
///
/// # Errors
/// See [`crate::button::Panel::open`].
#[cfg(all(feature = "gpio", target_os = "linux"))]
pub(super) fn open(settings: &Settings, to: SyncSender<Message>) -> Result<Shown, ServeError> {
    use std::time::Duration;

    use super::protocol::Request;
    use crate::button::{Panel, Press};

    /// A state that changes is shown after so long at the latest.
    const LOOK: Duration = Duration::from_millis(250);

    let mut panel = Panel::open(settings)?;
    let state = std::sync::Arc::new(std::sync::Mutex::new(None));
    let shown = state.clone();
    let wait = move || {
        loop {
            if let Some(state) = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
                panel.show(state);
            }
            let request = match panel.wait(LOOK) {
                Ok(None) => continue,
                Ok(Some(Press::Short)) => Request::Confirm { event: None },
                Ok(Some(Press::Long)) => Request::Wrong { event: None },
                Err(error) => {
                    tracing::warn!(%error, "the button is gone; listening goes on");
                    return;
                }
            };
            let (reply, answer) = std::sync::mpsc::sync_channel(1);
            if to.send(Message::Ask(request, reply)).is_err() || answer.recv().is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("button".into()).spawn(wait).map_err(|source| ServeError::Thread { source })?;
    Ok(Shown { state })
}

/// # Errors
/// Always: this build has no GPIO.
#[cfg(not(all(feature = "gpio", target_os = "linux")))]
pub(super) fn open(_: &Settings, _: SyncSender<Message>) -> Result<Shown, ServeError> {
    let why = "this build has no button and no LED: build with --features gpio on Linux, or leave [button] out".into();
    Err(ServeError::Setting { what: "button", why })
}
