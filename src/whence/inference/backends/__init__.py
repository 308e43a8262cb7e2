"""NUTS of other libraries, driven by the same loop as our own engines."""

from ._blackjax import BlackjaxNUTS as BlackjaxNUTS
from ._numpyro import NumpyroNUTS as NumpyroNUTS
from ._tfp import TFPNUTS as TFPNUTS
