"""Collectives read from compiled text, in the three ways in which it names the devices of a group."""

from perturbjax.bench.collectives import Collective, read_collectives

TEXT = """HloModule jit_f

%layer_condition (p: (s32[], bf16[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(28), metadata={op_name="f"}
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%layer (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %psum.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
}

%chunk_condition (p: (s32[], s32[])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %count), direction=LT
}

%chunk (p: (s32[], s32[])) -> (s32[], s32[]) {
  %w = (s32[], bf16[8]) while(%t), condition=%layer_condition, body=%layer
  %both = (f32[2]{0}, f32[3]{0}) all-reduce(%a, %b), replica_groups=[2,2]<=[4], to_apply=%add
  %across = f32[5]{0} all-reduce(%a), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
}

ENTRY %main (p: s32[]) -> f32[16] {
  %w = (s32[], s32[]) while(%t), condition=%chunk_condition, body=%chunk
  %all-gather-start = (f32[8]{0}, f32[16]{0}) all-gather-start(%r), replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, dimensions={0}
  %fused = f32[4] fusion(%all-gather-start), kind=kLoop, calls=%nowhere
}
"""


def test_kind_axis_size_loops_and_turns_are_read():
    assert sorted(read_collectives(TEXT, model=2), key=lambda one: one.nbytes) == [
        Collective("all-reduce", "model", 20, 1, 1),
        Collective("all-reduce", "candidate", 20, 1, 1),
        Collective("all-reduce", "model", 64, 2, 28),
        Collective("all-gather", "candidate", 64, 0, 1),
    ]
