"""Close codes can be sent, and say whether to come back."""

import pytest
from websockets.frames import Close

from messaging.protocol.close_codes import CloseCode


@pytest.mark.parametrize("code", CloseCode)
def test_close_code_and_reason_fit_into_a_close_frame(code):
    frame = Close(int(code), code.reason)
    frame.check()
    assert len(frame.serialize()) <= 125


@pytest.mark.parametrize("code", [CloseCode.KICKED, CloseCode.AUTH_FAILED, CloseCode.NORMAL])
def test_who_was_sent_away_does_not_come_back(code):
    assert not code.come_back


@pytest.mark.parametrize("code", [CloseCode.RESTARTING, CloseCode.TRY_AGAIN, CloseCode.IDLE])
def test_who_was_cut_off_comes_back(code):
    assert code.come_back
