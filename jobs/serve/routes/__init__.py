"""HTTP routes, by what they are about; each module has `routes(context) -> APIRouter`."""
