import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { limitedText } from './limited-text.ts';

describe('the text of an answer', () => {
  it('is read whole, and as UTF-8 across its pieces', async () => {
    const bytes = Buffer.from('grüße');
    const body = new ReadableStream({
      start(controller) {
        for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
        controller.close();
      },
    });
    assert.equal(await limitedText(new Response(body), bytes.length), 'grüße');
    assert.equal(await limitedText(new Response(null), 0), '');
  });

  it('is given up when it is longer than it may be, without waiting for its end', async () => {
    const endless = new ReadableStream({ pull: (controller) => controller.enqueue(new Uint8Array(1_000)) });
    await assert.rejects(limitedText(new Response(endless), 10_000), /the answer has more than 10000 bytes/);
  });
});
