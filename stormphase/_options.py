"""What `phase(...)` was told: checked when it is told, and made cheap to do for each call."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from stormphase import _errors
from stormphase._attributes import AttributeCounts, take
from stormphase._enter import METADATA, is_timeout, no_metadata
from stormphase._filters import AskFilter, Filter
from stormphase.exceptions import ConfigurationError

if TYPE_CHECKING:
    from typing import TypeAlias

    from stormphase._counts import Counts

ErrorPolicy: TypeAlias = "Literal['full', 'reference', 'not_a_failure']"
AtExit: TypeAlias = "Callable[[Mapping[str, Any], Any, BaseException | None], Mapping[str, Any] | None]"

ARGUMENT_ERRORS: Final = "argument_errors"
RESULT_KEY: Final = "result"
_POLICIES: Final = (_errors.FULL, _errors.REFERENCE, _errors.NOT_A_FAILURE)
_MISSING: Final = inspect.Parameter.empty  # a class, so that it stays itself where a decorated function is pickled
_NO_POSITION: Final = sys.maxsize

_ANY_CALL: Final = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)


class ErrorPolicies:
    """What is made of an exception, by its class: the most specific class that has a policy decides, else "full"."""

    __slots__ = ("_by_class",)

    def __init__(self, by_class: Mapping[Any, Any]) -> None:
        """Check and copy.

        Raises:
            ConfigurationError: if a key is no exception class, or a value no policy.
        """
        if not isinstance(by_class, Mapping):
            raise _wrong_errors(f"must be a mapping, not {type(by_class).__name__}")
        for kind, policy in by_class.items():
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise _wrong_errors(f"has the key {kind!r:.60}, which is no exception class")
            if policy not in _POLICIES:
                raise _wrong_errors(f"has {policy!r:.40} for {kind.__name__}, which is none of {', '.join(_POLICIES)}")
        self._by_class: dict[type, str] = dict(by_class)

    def __call__(self, error: BaseException) -> str:
        """Return the policy for `error`."""
        for kind in type(error).__mro__:
            policy = self._by_class.get(kind)
            if policy is not None:
                return policy
        return _errors.FULL


def _wrong_errors(problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"errors {problem}.",
        setting="errors",
        fix='Write errors={StopTraining: "not_a_failure", OSError: "reference"}.',
    )


@attrs.frozen
class Options:
    """All that `phase(...)` was told but for the name.

    Raises:
        ConfigurationError: if one of them cannot work.
        TypeError: if `attributes` is not a mapping.
    """

    attributes: dict[str, Any] | None = None
    arguments: tuple[str, ...] = ()
    at_exit: AtExit | None = None
    result_key: str | None = None
    filter: Filter | None = None
    error_policy: ErrorPolicies | None = None
    sync: bool = False
    capture: bool | Literal["fd"] | None = None
    timeout_s: float | None = None

    @classmethod
    def of(
        cls,
        *,
        attributes: Mapping[str, Any] | None = None,
        sync: bool = False,
        timeout_s: float | None = None,
        arguments: Sequence[str] = (),
        at_exit: AtExit | None = None,
        result: bool | str = False,
        filter: str | AskFilter | None = None,  # noqa: A002 - what it is called
        level: int | str | None = None,
        errors: Mapping[type[BaseException], ErrorPolicy] | None = None,
        capture: bool | Literal["fd"] | None = None,
        **unknown: object,
    ) -> Options:
        """Check each option, and keep it in the form that is cheap for each call.

        Raises:
            TypeError: if there is no such option; the message names the nearest one.
        """
        for name in unknown:
            raise _unknown_option(name)
        if at_exit is not None and not callable(at_exit):
            raise ConfigurationError(
                f"at_exit must be callable, and {at_exit!r:.60} is not.",
                setting="at_exit",
                fix='Write at_exit=lambda arguments, result, error: {"rows": len(result or ())}.',
            )
        return cls(
            # Normalised once: each enter then takes the fast way.
            attributes=None if attributes is None else take(attributes, AttributeCounts()),
            arguments=_checked_names(arguments),
            at_exit=at_exit,
            result_key=_checked_result(result),
            filter=Filter.of(filter, level),
            error_policy=None if errors is None else ErrorPolicies(errors),
            sync=bool(sync),
            capture=_checked_capture(capture),
            timeout_s=_checked_timeout(timeout_s),
        )


PLAIN: Final = Options()


def _unknown_option(name: str) -> TypeError:
    if name == METADATA:
        return no_metadata("phase")
    parameters = inspect.signature(Options.of).parameters.values()
    known = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    all_of_them = f"It has {', '.join(known)}."
    return TypeError(f"phase() has no option {name!r:.60}. {_near(name, known) or all_of_them}")


def _checked_names(arguments: Sequence[Any]) -> tuple[str, ...]:
    try:
        names = (arguments,) if isinstance(arguments, str) else tuple(arguments)
    except TypeError:  # True, as `result` may be.
        names = (arguments,)
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigurationError(
                f"arguments must be names of parameters, and {name!r:.60} is none.",
                setting="arguments",
                fix='Write arguments=("batch_size", "config.depth").',
            )
    return names


def _checked_result(result: object) -> str | None:
    if isinstance(result, bool):
        return RESULT_KEY if result else None
    if isinstance(result, str) and result.strip():
        return result
    raise ConfigurationError(
        f"result must be True or the attribute's name, not {result!r:.40}.",
        setting="result",
        fix='Write result=True, or result="rows".',
    )


def _checked_timeout(timeout_s: Any) -> float | None:
    if timeout_s is None or is_timeout(timeout_s):
        return None if timeout_s is None else float(timeout_s)
    raise ConfigurationError(
        f"timeout_s must be a number of seconds above 0, not {timeout_s!r:.40}.",
        setting="timeout_s",
        fix="Write timeout_s=60, or leave it out for no limit.",
    )


def _checked_capture(capture: object) -> bool | Literal["fd"] | None:
    if capture is None or isinstance(capture, bool):
        return capture
    if capture == "fd":
        return "fd"
    raise ConfigurationError(
        f"capture must be True, False or 'fd', not {capture!r:.40}.",
        setting="capture",
        fix="Write capture=True for what this phase prints and logs, or give options to PhaseTracker(capture=...).",
    )


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the function's signature; one that takes anything where none is known, as for some C functions."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return _ANY_CALL


@attrs.frozen
class _Argument:
    """One argument to be read from a call: where it may stand, and what of it is wanted."""

    key: str
    position: int
    keyword: str | None
    default: Any
    attributes: tuple[str, ...]
    collects: inspect._ParameterKind | None
    not_collected: frozenset[str]

    def value(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the argument's value in this call, or `_MISSING` if it was not given."""
        if self.collects is not None:
            value = self._collected(args, kwargs)
        elif len(args) > self.position:
            value = args[self.position]
        elif self.keyword is None:
            value = self.default
        else:
            value = kwargs.get(self.keyword, self.default)
        if value is not _MISSING:
            for attribute in self.attributes:
                value = getattr(value, attribute)
        return value

    def _collected(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.collects is inspect.Parameter.VAR_POSITIONAL:
            return args[self.position :]
        return {name: each for name, each in kwargs.items() if name not in self.not_collected}


class ArgumentReader:
    """Reads the selected arguments of each call; where they stand was found once, at decoration."""

    __slots__ = ("_arguments",)

    def __init__(self, names: Sequence[str], function: Callable[..., Any], label: str) -> None:
        """Find each name among the function's parameters; a part behind a dot is an attribute of the argument.

        Raises:
            ConfigurationError: if the function has no such parameter; the message names near ones.
        """
        signature = signature_of(function)
        self._arguments = tuple(_find(name, signature, label) for name in names)

    def read(
        self, attributes: Mapping[str, Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], counts: Counts
    ) -> dict[str, Any]:
        """Return `attributes` together with the selected arguments of one call; one that cannot be read is counted."""
        found = {} if attributes is None else dict(attributes)
        for argument in self._arguments:
            try:
                value = argument.value(args, kwargs)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # noqa: BLE001 - the attribute is the user's, and may raise anything
                counts.add(ARGUMENT_ERRORS)
                continue
            if value is not _MISSING:
                found[argument.key] = value
        return found


def _find(name: str, signature: inspect.Signature, label: str) -> _Argument:
    first, *attributes = name.split(".")
    parameter = signature.parameters.get(first)
    kinds = inspect.Parameter
    by_keyword = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    if parameter is None:
        if not any(each.kind is kinds.VAR_KEYWORD for each in signature.parameters.values()):
            raise _unknown_argument(name, first, signature, label)
        parameter = kinds(first, kinds.KEYWORD_ONLY)
    is_collecting = parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    is_by_position = parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
    return _Argument(
        key=name,
        position=list(signature.parameters).index(first) if is_by_position else _NO_POSITION,
        keyword=first if parameter.kind in by_keyword else None,
        default=parameter.default,
        attributes=tuple(attributes),
        collects=parameter.kind if is_collecting else None,
        not_collected=frozenset(each.name for each in signature.parameters.values() if each.kind in by_keyword),
    )


def _unknown_argument(name: str, first: str, signature: inspect.Signature, label: str) -> ConfigurationError:
    known = ", ".join(signature.parameters) or "none"
    fix = _near(first, signature.parameters) or "Name one of those."
    return ConfigurationError(
        f"arguments names {name!r:.60}, and {label} has no parameter {first!r:.60}; it has {known:.400}.",
        setting="arguments",
        fix=fix,
    )


def _near(name: str, known: Iterable[str]) -> str | None:
    """Return a question that names what may have been meant, or None if nothing is near."""
    import difflib  # noqa: PLC0415 - only for a message

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else None
