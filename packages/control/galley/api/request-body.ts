import type { IncomingMessage } from 'node:http';
import { parseYaml } from '@mizzen/common/bounded-yaml';
import { ApiError, badRequest } from '../api-error.ts';

/** Larger bodies are refused: Kubernetes' own limit is 3 MiB. */
export const bodyLimitBytes = 3 * 1024 * 1024;

/** Levels of objects and lists within each other, as in YAML. Work on an object grows with its depth. */
const maxDepth = 100;

/** Reads a body within the limit, and decodes it as JSON or YAML by its content type. */
export async function readBody(request: IncomingMessage, onBytes: (bytes: number) => void = () => {}): Promise<unknown> {
  const declared = Number(request.headers['content-length'] ?? 0);
  const tooLarge = new ApiError(413, 'RequestEntityTooLarge', `the request is larger than ${bodyLimitBytes} bytes`);
  if (declared > bodyLimitBytes) throw tooLarge;
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    onBytes(chunk.length);
    if (size > bodyLimitBytes) throw tooLarge;
    chunks.push(chunk);
  }
  const text = Buffer.concat(chunks).toString('utf8');
  if (text === '') return undefined;
  const type = (request.headers['content-type'] ?? 'application/json').split(';')[0]!.trim().toLowerCase();
  try {
    if (type.endsWith('json')) return withinDepth(JSON.parse(text));
    if (type.endsWith('yaml')) return parseYaml(text);
  } catch (error) {
    throw badRequest(`the body is no valid ${type}: ${error instanceof Error ? error.message.split('\n')[0] : ''}`);
  }
  if (type === 'application/vnd.kubernetes.protobuf') {
    throw new ApiError(
      415,
      'UnsupportedMediaType',
      'objects in protobuf form are not taken, and this kubectl command sends one: add --dry-run=client -o yaml and pipe it to `kubectl apply -f -` (for a token: `mizzen token`)',
    );
  }
  throw new ApiError(415, 'UnsupportedMediaType', `the body's content type ${type} is not supported: use application/json or application/yaml`);
}

/** Without recursion: a body may be nested a million times. */
function withinDepth(body: unknown): unknown {
  const waiting: { readonly value: unknown; readonly depth: number }[] = [{ value: body, depth: 0 }];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const { value, depth } = next;
    if (typeof value !== 'object' || value === null) continue;
    if (depth >= maxDepth) throw new Error(`nested more than ${maxDepth} levels deep`);
    for (const member of Object.values(value)) if (typeof member === 'object' && member !== null) waiting.push({ value: member, depth: depth + 1 });
  }
  return body;
}
