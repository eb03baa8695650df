//! The API's OpenAPI description, generated from the handlers.

use utoipa::OpenApi;

use super::{environments, machine, memory};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "garret guest API",
        description = "The API of `garret-agent` inside a machine. Only the host can connect to it."
    ),
    paths(
        machine::info,
        machine::set_up,
        machine::exec,
        machine::release,
        machine::power_off,
        memory::follow,
        memory::squeeze,
        environments::list,
        environments::up,
        environments::get,
        environments::delete,
        environments::exec,
        environments::log,
        environments::stop,
    )
)]
struct Description;

#[test]
fn the_file_is_the_description() {
    garret_api::openapi::check("agent", &Description::openapi());
}
