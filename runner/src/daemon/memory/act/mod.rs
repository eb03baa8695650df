//! Carries out the policy's orders.

mod actuators;
mod latest_only;
mod pause_control;

pub(crate) use actuators::Actuators;
pub(crate) use pause_control::{PauseControl, PauseState, WakeGuard};
