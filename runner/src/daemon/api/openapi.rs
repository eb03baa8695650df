//! The API's OpenAPI description, generated from the handlers.

use utoipa::OpenApi;

use super::{environments, events, host, machines, metrics, operations, streams, top};

#[derive(OpenApi)]
#[openapi(
    info(title = "garret host API", description = "The API of `garret daemon` on its Unix socket."),
    paths(
        host::show,
        top::show,
        metrics::of_all,
        machines::list,
        machines::show,
        machines::put,
        machines::remove,
        machines::log,
        metrics::of_machine,
        machines::exec,
        environments::list,
        environments::show,
        environments::put,
        environments::remove,
        environments::show_local_env,
        environments::clear_local_env,
        environments::log,
        environments::exec,
        operations::list,
        operations::show,
        streams::list,
        streams::end,
        events::of_environment,
        events::of_machine,
        events::of_all,
    ),
    components(schemas(garret_api::runner::Event, garret_api::ProblemDetails))
)]
struct Description;

#[test]
fn the_file_is_the_description() {
    garret_api::openapi::check("runner", &Description::openapi());
}
