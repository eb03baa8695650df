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
        routes::balloon,
        routes::set_balloon,
        routes::memory,
        routes::set_memory,
        routes::metrics
    )
)]
struct Description;

/// OpenAPI, as pretty-printed JSON that ends with a line feed.
pub fn document() -> String {
    Description::openapi().to_pretty_json().expect("the description is plain data") + "\n"
}

#[cfg(test)]
mod tests {
    use super::document;

    /// `GARRET_WRITE_OPENAPI=1` writes the file instead.
    #[test]
    fn the_checked_in_description_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/openapi/vmm.json");
        if std::env::var_os("GARRET_WRITE_OPENAPI").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(
            kept == document(),
            "run GARRET_WRITE_OPENAPI=1 cargo test --release -p garret-vmm openapi, look at the difference, commit it"
        );
    }
}
