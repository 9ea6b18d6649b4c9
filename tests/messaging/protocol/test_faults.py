"""The table of faults can be told to a peer."""

from messaging.protocol.faults import Fault, ProtocolFault
from messaging.protocol.reasons import Reason


def test_faults_are_told_apart_by_their_text():
    assert len({fault.text for fault in Fault}) == len(Fault)


def test_no_fault_is_a_success():
    assert Reason.SUCCESS not in {fault.reason for fault in Fault}


def test_protocol_fault_says_what_it_is():
    assert str(ProtocolFault(Fault.BAD_ID)) == Fault.BAD_ID.text
