//! The API's OpenAPI description, generated from the handlers.

use utoipa::OpenApi;

use super::routes;

#[derive(OpenApi)]
#[openapi(
    info(title = "garret machine API", description = "One garret-vmm process is one machine.", version = "1"),
    paths(
        routes::describe,
        routes::pause,
        routes::resume,
        routes::power_button,
        routes::shutdown,
        routes::memory,
        routes::set_memory,
        routes::metrics
    )
)]
struct Description;

#[test]
fn the_file_is_the_description() {
    garret_api::openapi::check("vmm", &Description::openapi());
}
