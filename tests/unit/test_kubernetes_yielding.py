"""When an object of the cluster is left to another mesh, and when it is looked at again."""

from lmos_mesh.resource_index import ResourceKey
from lmos_mesh_operator.kubernetes.mirroring import MIRRORED, Seen
from lmos_mesh_operator.kubernetes.yielding import PAUSE_S, Yielding

KEY = ResourceKey("Channel", "default", "web")


def seen(store: str = "", uid: str = "1") -> Seen:
    remembered = {MIRRORED: f"a.b.{store}"} if store else {}
    return Seen(key=KEY, body={"metadata": {"uid": uid, "annotations": remembered}})


def test_what_another_mesh_has_made_its_own_is_left_alone_a_while():
    yielding = Yielding("ours")

    assert yielding.saw(seen("ours"), seen("theirs"), now=100.0)
    assert yielding.left_s(KEY, 100.0) == PAUSE_S
    assert yielding.left_s(KEY, 100.0 + PAUSE_S) == 0.0
    assert yielding.left_s(KEY, 100.0) == 0.0


def test_a_store_that_was_lost_is_no_other_mesh():
    yielding = Yielding("ours")

    assert not yielding.saw(seen("lost"), seen("ours"), now=1.0)
    assert not yielding.saw(seen("lost"), seen("lost"), now=1.0)
    assert not yielding.saw(seen(), seen("theirs"), now=1.0)
    assert not yielding.saw(seen("ours"), seen(), now=1.0)
    assert not yielding.saw(seen("ours"), seen("theirs", uid="2"), now=1.0)
    assert yielding.left_s(KEY, 1.0) == 0.0
