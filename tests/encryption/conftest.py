from collections.abc import AsyncGenerator

import pytest

from encryption.service import EncryptionService
from tests.encryption.samples import KEYRING


@pytest.fixture
async def service() -> AsyncGenerator[EncryptionService, None]:
    async with EncryptionService(KEYRING, kdf_queue=200) as service:
        yield service
