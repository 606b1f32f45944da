"""For tests of plugins: endpoints with the numbers you say, requests, a clock you move, and the real machinery.

    from epp.testing import endpoints, plugin, request

    def test_prefers_short_queues():
        scorer = plugin(MyScorer, {"threshold": 4})
        assert scorer.score(request(), endpoints(waiting=[0, 8])).tolist() == [1.0, 0.0]

`plugin` checks the class and reads its parameters as the picker does; `assemble` builds a whole configuration with
your class in it, and its `schedule` picks an endpoint for a request.
"""

from epp.testing.assembly import Assembled as Assembled
from epp.testing.assembly import assemble as assemble
from epp.testing.clock import ManualClock as ManualClock
from epp.testing.endpoints import endpoints as endpoints
from epp.testing.plugins import context as context
from epp.testing.plugins import plugin as plugin
from epp.testing.requests import TextPayload as TextPayload
from epp.testing.requests import request as request
from epp.testing.requests import response as response
