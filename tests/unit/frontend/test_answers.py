"""The server's answers have the fields that the client reads.

They are declared twice: the server promises exact values, while the client also reads those of other versions.
"""

import pytest
from pydantic import BaseModel

from filmstrip import models
from frontend import schema

PAIRS: list[tuple[type[BaseModel], type[BaseModel]]] = [
    (schema.UploadAnswer, models.UploadedVideo),
    (schema.BlobAnswer, models.UploadedData),
    (schema.AssetAnswer, models.UploadedAsset),
    (schema.CancelAnswer, models.CancelAnswer),
    (schema.HealthAnswer, models.Health),
    (schema.PipelinesAnswer, models.PipelineList),
    (schema.PipelineAnswer, models.PipelineInfo),
    (schema.FeaturesAnswer, models.PipelineFeatures),
    (schema.LoadAnswer, models.LoadAnswer),
    (schema.PipelineStatusAnswer, models.LoadStatus),
    (schema.LoraAnswer, models.LoraInfo),
    (schema.ErrorDetail, models.ErrorDetail),
]


@pytest.mark.parametrize(("sent", "read"), PAIRS)
def test_the_client_reads_every_field_that_the_server_sends(sent: type[BaseModel], read: type[BaseModel]) -> None:
    assert list(sent.model_fields) == list(read.model_fields)


def test_every_answer_is_compared() -> None:
    answers = {each for name, each in vars(schema).items() if name.endswith("Answer")}
    assert answers - {sent for sent, _ in PAIRS} == {schema.ErrorAnswer, schema.LiveAnswer}
    assert list(schema.ErrorAnswer.model_fields) == [*models.ErrorAnswer.model_fields, "detail"]
