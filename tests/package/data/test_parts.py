import pytest

from emalab.data import DataError, load_dataset


class TestParts:
    def test_kept_and_held_out_make_the_split(self):
        whole = load_dataset("shapes-pooled", "train")
        kept, held_out = (load_dataset("shapes-pooled", f"train/{part}") for part in ("kept", "held-out"))
        names = [whole[i].name for i in range(len(whole))]
        assert [held_out[i].name for i in range(len(held_out))] == names[::10]
        assert [kept[i].name for i in range(len(kept))] == [name for i, name in enumerate(names) if i % 10]
        assert kept.spec == held_out.spec == whole.spec
        assert kept.image(0)[1] == names[1]

    def test_wrong_names(self):
        with pytest.raises(DataError, match="no part 'rest'; there are train/kept and train/held-out"):
            load_dataset("shapes-pooled", "train/rest")
        with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
            load_dataset("shapes-pooled", "trian/kept")
