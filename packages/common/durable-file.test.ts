import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { openLine, readTextFile, sealLine, writeDurably, writeDurablyAsync } from './durable-file.ts';

describe('small durable files', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-durable-'));
  after(() => rmSync(folder, { recursive: true, force: true }));

  for (const write of [writeDurably, writeDurablyAsync]) {
    it(`${write.name} replaces the whole file, readable by its owner alone, and leaves nothing beside it`, async () => {
      const path = join(folder, write.name, 'file');
      mkdirSync(join(folder, write.name));
      writeFileSync(path, 'a longer content of before', { mode: 0o644 });
      await write(path, 'new');
      assert.equal(readFileSync(path, 'utf8'), 'new');
      assert.equal(statSync(path).mode & 0o777, 0o600);
      assert.deepEqual(readdirSync(join(folder, write.name)), ['file']);
    });

    it(`${write.name} keeps the old file when the new one cannot be written, and throws the error of the file system`, async () => {
      const path = join(folder, `${write.name}-refused`);
      mkdirSync(join(path, 'kept'), { recursive: true });
      await assert.rejects(async () => write(path, 'new'), { code: 'EISDIR' });
      assert.deepEqual(readdirSync(path), ['kept']);
      assert.deepEqual(
        readdirSync(folder).filter((name) => name.endsWith('.new')),
        [],
      );
    });
  }

  it('are read as text, or as undefined where there is none', () => {
    assert.equal(readTextFile(join(folder, 'absent')), undefined);
    assert.throws(() => readTextFile(folder), { code: 'EISDIR' });
  });

  it('have sealed lines that open only as they were written', () => {
    const line = sealLine('{"a":1}');
    assert.equal(openLine(line), '{"a":1}');
    for (let at = 0; at < line.length; at++) assert.equal(openLine(`${line.slice(0, at)}~${line.slice(at + 1)}`), undefined, `byte ${at}`);
    for (let length = 0; length < line.length; length++) assert.equal(openLine(line.slice(0, length)), undefined, `cut at ${length}`);
  });
});
