"""The kinds of parameters that declarations of operators use."""

from dspex.operators.parameters.code import CallableParameter as CallableParameter
from dspex.operators.parameters.code import ExpressionParameter as ExpressionParameter
from dspex.operators.parameters.code import ExpressionsParameter as ExpressionsParameter
from dspex.operators.parameters.code import FunctionParameter as FunctionParameter
from dspex.operators.parameters.code import RefParameter as RefParameter
from dspex.operators.parameters.code import RefsParameter as RefsParameter
from dspex.operators.parameters.code import TestParameter as TestParameter
from dspex.operators.parameters.code import TestsParameter as TestsParameter
from dspex.operators.parameters.code import TextOrFunctionParameter as TextOrFunctionParameter
from dspex.operators.parameters.parameter import Arguments as Arguments
from dspex.operators.parameters.parameter import Parameter as Parameter
from dspex.operators.parameters.parameter import Types as Types
from dspex.operators.parameters.typed import INTO as INTO
from dspex.operators.parameters.typed import SignatureParameter as SignatureParameter
from dspex.operators.parameters.typed import TypeParameter as TypeParameter
from dspex.operators.parameters.values import BooleanParameter as BooleanParameter
from dspex.operators.parameters.values import ChoiceParameter as ChoiceParameter
from dspex.operators.parameters.values import DurationParameter as DurationParameter
from dspex.operators.parameters.values import FieldNameParameter as FieldNameParameter
from dspex.operators.parameters.values import FieldNamesParameter as FieldNamesParameter
from dspex.operators.parameters.values import IntegerParameter as IntegerParameter
from dspex.operators.parameters.values import NothingParameter as NothingParameter
from dspex.operators.parameters.values import TextParameter as TextParameter
