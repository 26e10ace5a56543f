"""The words that people give to folders, files and labels: good and bad in several languages, splits, masks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["FILLERS", "is_mask_word", "is_open_word", "label_of", "label_of_stem", "label_of_word", "split_of"]

_NORMAL = """
good goods ok okay normal normals no free pass passed negative healthy accept accepted conform conforming conformant
conformity defectfree nodefect nodefects nondefect nondefective notdefective anomalyfree noanomaly nonanomalous
flawless intact perfect correct nominal undamaged unbroken golden
gut gute gutteil gutteile io inordnung fehlerfrei einwandfrei ohnefehler keinfehler intakt
bon bons bonne bonnes conforme conformes sansdefaut sansdefauts sain sains saine saines normaux normale normales
bueno buenos buena buenas bien correcto correctos correcta correctas aprobado aprobados sindefecto sindefectos sano
sanos normales aceptado aceptados
buono buoni buona buone conformi corretto corretti senzadifetti senzadifetto normali accettato accettati
bom boa boas semdefeito semdefeitos aprovado aprovados
goed goede goedgekeurd dobry dobre dobra iyi saglam godkand
норма нормальный нормальные годный годные годен хороший хорошие
良品 合格 合格品 正常 正常品 好 好品 优良 無缺陷 无缺陷 正品 通过 良 ok品 良好
liangpin hege hegepin zhengchang hao haopin wuquexian ryohin ryouhin seijo seijou gokaku goukaku
양품 정상 합격 양호 yangpum jeongsang
"""
_ANOMALOUS = """
bad ng ngs ko nok notok nogood notgood nonok defect defects defective defectives defected anomaly anomalies anomalous
anomal abnormal abnormals abnormality ungood yes fail failed fails failure failures fault faults faulty flaw flaws
flawed positive broken damaged damage damages reject rejects rejected scrap scraps scrapped nonconforming nonconform
nonconformity notconforming unhealthy diseased wrong outlier outliers notnormal nonnormal
schlecht schlechte schlechtteil schlechtteile nio nichtio nichtinordnung nichtok defekt defekte fehler fehlerhaft
fehlerhafte fehlerteile mangelhaft mangel maengel ausschuss schadhaft beschadigt beschaedigt kaputt anomalie anomalien
mauvais mauvaise mauvaises defaut defauts defectueux defectueuse defectueuses nonconforme nonconformes noconforme
noconformes rebut rebuts rejet rejets rejete rejetes anormal anormale anormaux anormales pasbon pasbons
malo malos mala malas mal defecto defectos defectuoso defectuosos defectuosa defectuosas rechazado rechazados rechazada
rechazo rechazos anomalia anomalias anormales fallo fallos danado danados chatarra
cattivo cattivi difetto difetti difettoso difettosi difettosa difettose nonconformi scarto scarti guasto guasti
scartato scartati anomalo anomali nonbuono nonbuoni
ruim ruins defeito defeitos defeituoso defeituosos reprovado reprovados rejeitado rejeitados
slecht slechte afkeur afgekeurd zly zle wadliwy wadliwe spatny spatne vadny vadne zmetek zmetky kotu hatali kusurlu
bozuk dalig daliga underkand
брак бракованный бракованные дефект дефекты дефектный дефектные аномалия аномалии плохой плохие негодный негодные
不良 不良品 缺陷 缺陷品 有缺陷 瑕疵 瑕疵品 不合格 不合格品 次品 异常 異常 異常品 坏 坏品 废品 不好 欠陥 欠陥品 ng品
buliang buliangpin quexian xiaci buhege buhegepin yichang cipin feipin furyo furyou furyohin furyouhin kekkan ijo ijou
fugokaku fugoukaku
불량 불량품 결함 비정상 이상 불합격 bullyang bulryang gyeolham bijeongsang
"""
_UNSORTED = """
unknown unlabeled unlabelled unsorted unclear unsure misc todo new other others rest unbekannt unklar unsortiert
sonstige inconnu autres desconocido otros sconosciuto altri 未知 未分类 不明 미분류
"""
_SPLITS = {
    "train": "train training trainset trains trainingset entrainement entrenamiento addestramento 训练 训练集 학습",
    "val": "val valid validation valset validationset validierung validacion validazione 验证 验证集 검증",
    "test": "test testing tests testset eval evaluation prueba 测试 测试集 テスト 테스트",
}
_MASKS = """
mask masks groundtruth groundtruths gt gts maske masken masque masques mascara mascaras maschera maschere defectmask
defectmasks anomalymask anomalymasks segmentationmask segmentationmasks binarymask
binarymasks 掩码 掩膜 掩模 マスク 마스크
"""
_MAYBE_MASKS = """
label labels lbl annotation annotations annotated ann seg segs segmentation segmentations segmap truth labeled labelled
标注 标签
"""
_FILLERS = "images image imgs img pictures picture pics pic photos photo fotos foto bilder bild data dataset jpegimages"
_BESIDE = "parts part samples sample pieces piece teile teil stücke items item set class label labeled labelled"


@lru_cache(maxsize=65536)
def _plain(word: str) -> str:
    """Returns a word without case, accents, separators, and digits in front or behind: ``2_n.i.O.`` is ``nio``."""
    text = unicodedata.normalize("NFKD", word).casefold()
    text = "".join(letter for letter in text if unicodedata.category(letter)[0] not in "MPSZC")
    return text.strip("0123456789")


def _words(text: str) -> frozenset[str]:
    return frozenset(_plain(word) for word in text.split())


NORMAL, ANOMALOUS, UNSORTED = _words(_NORMAL), _words(_ANOMALOUS), _words(_UNSORTED)
SPLITS = {_plain(word): split for split, text in _SPLITS.items() for word in text.split()}
MASKS, MAYBE_MASKS = _words(_MASKS), _words(_MAYBE_MASKS)
FILLERS = _words(_FILLERS)
"""Names of folders that say nothing."""

_ALONE = frozenset({"no", "yes", "free"})  # with a number or other words they mean something else: "No 12"
_DROPPED = FILLERS | _words(_BESIDE)
_SEPARATORS = re.compile(r"[\s_\-.,;:()\[\]]+")


@lru_cache(maxsize=65536)
def _forms(word: str) -> tuple[str, ...]:
    """Returns a word in its plain form, and without the words that say nothing beside it (``OK_parts``)."""
    tokens = [_plain(token) for token in _SEPARATORS.split(word)]
    kept = [token for token in tokens if token and token not in _DROPPED]
    return _plain(word), "".join(kept)


def label_of_word(word: str) -> int:
    """Returns 0 for a word that means good, 1 for one that means bad, -1 for others.

    Case, accents, separators, numbers before and behind, and words such as ``images`` do not matter.

    Examples:
        >>> [label_of_word(word) for word in ("OK_1", "n.i.O.", "Défauts", "良品", "bad parts", "scratch")]
        [0, 1, 1, 0, 1, -1]
    """
    for form in _forms(word):
        if form in _ALONE and form != word.strip().casefold():
            continue
        if form in NORMAL:
            return 0
        if form in ANOMALOUS:
            return 1
    return -1


def label_of(parts: Sequence[str]) -> int:
    """Returns 0, 1 or -1 by the names of the folders above an image, the nearest first."""
    return next((label for label in map(label_of_word, reversed(parts)) if label >= 0), -1)


def label_of_stem(stem: str) -> int:
    """Returns 0, 1 or -1 by the first or the last word of a file's name: ``NG_0012``, ``part3-ok``."""
    tokens = [token for token in _SEPARATORS.split(stem) if _plain(token)]
    for token in (stem, *tokens[:1], *tokens[-1:]):
        if label_of_word(token) >= 0 and token.casefold() not in _ALONE:
            return label_of_word(token)
    return -1


def is_open_word(word: str) -> bool:
    """Returns whether a word says that nobody knows yet: ``unsorted``, ``unknown``."""
    return any(form in UNSORTED for form in _forms(word))


def split_of(word: str) -> str:
    """Returns ``train``, ``val`` or ``test`` for a word that names a split, else ""."""
    return next((SPLITS[form] for form in _forms(word) if form in SPLITS), "")


def is_mask_word(word: str, *, sure: bool = True) -> bool:
    """Returns whether a folder's name means masks.

    Args:
        word: The name.
        sure: Only names that mean nothing else; otherwise also ``labels``, ``annotations`` and the like, whose content
            must tell.
    """
    return any(form in MASKS or (not sure and form in MAYBE_MASKS) for form in _forms(word))
