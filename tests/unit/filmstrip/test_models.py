"""Answers are declared twice: strictly by the server, and by the client, which has to read other versions, too."""

import pytest

from filmstrip import models
from frontend import schema

ANSWERS = {
    schema.VideoUploadAnswer: models.UploadedVideo,
    schema.BlobAnswer: models.UploadedData,
    schema.AssetAnswer: models.UploadedAsset,
    schema.CancelAnswer: models.CancelAnswer,
    schema.HealthAnswer: models.Health,
    schema.FeaturesAnswer: models.PipelineFeatures,
    schema.PipelineAnswer: models.PipelineInfo,
    schema.PipelinesAnswer: models.PipelineList,
    schema.LoadAnswer: models.LoadAnswer,
    schema.LoraAnswer: models.LoraInfo,
    schema.PipelineStatusAnswer: models.LoadStatus,
    schema.ErrorDetail: models.ErrorDetail,
    schema.ErrorAnswer: models.ErrorAnswer,
    schema.GenerationAnswer: models.Generation,
    schema.GenerationsAnswer: models.GenerationPage,
    schema.CancelGenerationAnswer: models.CancelAnswer,
    schema.DryRunAnswer: models.DryRunPlan,
    schema.ChunkAnswer: models.PlannedChunk,
}
NOT_FOR_CLIENTS = {schema.ErrorAnswer: {"detail"}}  # repeats the message for clients of other servers


def test_the_client_reads_every_key_of_the_servers_answers(subtests: pytest.Subtests):
    for sent, read in ANSWERS.items():
        with subtests.test(read.__name__):
            assert set(read.model_fields) == set(sent.model_fields) - NOT_FOR_CLIENTS.get(sent, set())
