import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { decodeYaml, describeProblem, findKind, groupOf, type Resource } from '@mizzen/api';
import { TestMesh } from './support/mesh.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const pages = [...readdirSync(join(root, 'docs')).map((name) => join('docs', name)), 'README.md'].filter((name) => name.endsWith('.md'));

interface Block {
  readonly place: string;
  readonly text: string;
}

/** The fenced blocks of a language in all pages. */
function blocksIn(language: string): Block[] {
  return pages.flatMap((page) => {
    const text = readFileSync(join(root, page), 'utf8');
    return [...text.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, 'gms'))].map((match) => ({
      place: `${page}:${text.slice(0, match.index).split('\n').length}`,
      text: match[1]!,
    }));
  });
}

const indented = (text: string, by: string) => text.replace(/^(?=.)/gm, by);

/** A part of an object is completed to the object that it is a part of. */
function wholeObject(text: string): string {
  if (/^apiVersion:/m.test(text)) return text;
  if (/^policies:/m.test(text))
    return `apiVersion: mizzen.dev/v1alpha1\nkind: Api\nmetadata: { name: part }\nspec:\n  hosts: [part.example]\n  placement: edge\n  gateways: [ingress]\n  upstream: { service: orders, port: 8080 }\n${indented(text, '  ')}`;
  return `apiVersion: v1\nkind: ConfigMap\nmetadata: { name: istio, namespace: istio-system }\ndata:\n  mesh: |\n${indented(text, '    ')}`;
}

describe('the examples of the documentation', () => {
  let mesh: TestMesh;
  before(async () => {
    mesh = await TestMesh.start();
    await mesh.plane.registry.apply(
      findKind('', 'Namespace')!,
      '',
      'mizzen-system',
      { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'mizzen-system' } },
      true,
      {
        manager: 'test',
        origin: { source: 'api', name: 'test' },
      },
    );
  });
  after(() => mesh.close());

  for (const { place, text } of blocksIn('yaml'))
    it(`are accepted by the control plane: ${place}`, async () => {
      const { resources, problems } = decodeYaml(wholeObject(text), place);
      assert.deepEqual(
        problems.map((problem) => describeProblem(problem, place)),
        [],
      );
      assert.ok(resources.length > 0);
      for (const { resource, origin } of resources) {
        const kind = findKind(groupOf(resource.apiVersion), resource.kind)!;
        const context = { manager: 'test', origin, dryRun: true };
        await mesh.plane.registry.apply(kind, resource.metadata.namespace ?? '', resource.metadata.name, copyOf(resource), true, context);
      }
    });

  it('stand beside promises whose tests exist', () => {
    const files = ['packages', 'e2e', 'conformance', 'fuzz', 'bench'].flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).flatMap((name) =>
        name.endsWith('.test.ts') && !name.includes('node_modules') ? [`/${folder}/${name}`] : [],
      ),
    );
    let promised = 0;
    for (const page of pages)
      for (const [named] of readFileSync(join(root, page), 'utf8').matchAll(/[\w./-]+\.test\.ts/g)) {
        assert.ok(
          files.some((file) => file.endsWith(`/${named}`)),
          `${page} names ${named}, which does not exist`,
        );
        promised++;
      }
    assert.ok(promised > 50, `${promised} tests are named`);
  });

  it('are commands that exist, with options that exist', async () => {
    const help = new Map<string, Promise<string>>();
    const helpOf = (words: readonly string[]) => {
      const key = words.join(' ');
      let text = help.get(key);
      if (text === undefined) {
        text = promisify(execFile)(process.execPath, [join(root, 'packages/cli/main.ts'), ...words, '--help']).then(({ stdout }) => stdout);
        help.set(key, text);
      }
      return text;
    };
    const found = blocksIn('sh').flatMap(({ place, text }) => text.split('\n').map((line) => ({ place, line })));
    let commands = 0;
    await Promise.all(
      found.map(async ({ place, line }) => {
        for (const [, given = ''] of line.replace(/(?:^|\s)#.*$/, '').matchAll(/(?:^|[\s(/])mizzen (.*?)(?= -- |[);]|$)/g)) {
          const words = given.trim().split(/\s+/);
          // `mizzen up FOLDER`, `mizzen broker check`: which words are commands shows in the help of the first.
          const [first = '', second = ''] = words;
          const outer = await helpOf([first]);
          assert.match(outer, new RegExp(`Usage: mizzen ${first}\\b`), `${place}: ${line}`);
          const isNested = new RegExp(`^  ${second}(?: |\\||$)`, 'm').test(outer) && /^Commands:/m.test(outer);
          const text = isNested ? outer + (await helpOf([first, second])) : outer;
          for (const option of words.filter((word) => word.startsWith('-')))
            assert.match(text, new RegExp(`(?:^|[\\s,])${option.split('=')[0]}[\\s,]`), `${place}: ${line}: ${option}`);
          commands++;
        }
      }),
    );
    assert.ok(commands >= 20, `${commands} commands`);
  });
});

/** A plain object of it, which the registry may keep. */
function copyOf(resource: Resource): Record<string, unknown> {
  return JSON.parse(JSON.stringify(resource)) as Record<string, unknown>;
}
