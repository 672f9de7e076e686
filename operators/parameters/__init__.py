"""The kinds of parameters that declarations of operators use."""

from dspex.operators.parameters.code import Expression as Expression
from dspex.operators.parameters.code import Expressions as Expressions
from dspex.operators.parameters.code import Function as Function
from dspex.operators.parameters.code import Ref as Ref
from dspex.operators.parameters.code import Refs as Refs
from dspex.operators.parameters.code import Test as Test
from dspex.operators.parameters.code import Tests as Tests
from dspex.operators.parameters.code import TextOrFunction as TextOrFunction
from dspex.operators.parameters.parameter import Arguments as Arguments
from dspex.operators.parameters.parameter import Parameter as Parameter
from dspex.operators.parameters.parameter import Schema as Schema
from dspex.operators.parameters.parameter import Types as Types
from dspex.operators.parameters.typed import INTO as INTO
from dspex.operators.parameters.typed import Signature as Signature
from dspex.operators.parameters.typed import Type as Type
from dspex.operators.parameters.values import Choice as Choice
from dspex.operators.parameters.values import Duration as Duration
from dspex.operators.parameters.values import FieldName as FieldName
from dspex.operators.parameters.values import Integer as Integer
from dspex.operators.parameters.values import Nothing as Nothing
from dspex.operators.parameters.values import Text as Text
