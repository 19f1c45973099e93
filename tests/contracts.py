"""Which public members a contract runs over."""

import inspect


def members(module, *bases):
    """Return the names of the public classes in `module` that derive from `bases`."""
    public = ((name, getattr(module, name)) for name in module.__all__)
    return {n for n, v in public if inspect.isclass(v) and issubclass(v, bases)}


def returning(module, annotation):
    """Return the names of the public functions in `module` annotated to return this."""
    return {
        name
        for name in module.__all__
        if inspect.isfunction(value := getattr(module, name))
        and inspect.signature(value).return_annotation == annotation
    }


def assert_complete(table, found):
    """Fail if a public member has no row in `table`, or a row has no member."""
    missing, unknown = sorted(found - set(table)), sorted(set(table) - found)
    assert not missing, f"Give {missing} a row in the table of this contract."
    assert not unknown, f"{unknown} in the table of this contract are not public."
