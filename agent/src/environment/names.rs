//! What an environment's parts are called in the engine.

/// The label of everything that belongs to an environment; its value is the environment's id.
const ENVIRONMENT_LABEL: &str = "garret.environment";

/// The label of an environment's parts, with its value.
pub(super) fn label(id: &str) -> String {
    format!("{ENVIRONMENT_LABEL}={id}")
}

/// The name of an environment's container, unless `runArgs` set another.
pub(super) fn container_name(id: &str) -> String {
    format!("garret-{id}")
}

/// The name of the image that an environment builds.
pub(super) fn built_image(id: &str) -> String {
    format!("localhost/garret-{}", id.to_lowercase())
}

/// The image in which the remote user has the ids of the workspace's owner.
pub(super) fn renumbered_image(id: &str) -> String {
    format!("{}-user", built_image(id))
}
