import { compileRegex } from '@mizzen/common/linear-regex';
import type { RegexMatchAndSubstitute } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/regex_pb.js';
import type { RE2JS } from 're2js';
import { utf8Bytes } from '../message/header-bytes.ts';

/**
 * Replaces all that a regex matches in a text (envoy regex.proto `RegexMatchAndSubstitute`): in the substitution `\1` is what the first group
 * matched, `\0` the whole match, `\\` a backslash; all else, `$` too, stands for itself.
 */
export class RegexSubstitution {
  readonly #pattern: RE2JS;
  /** Texts, and numbers of groups; undefined: the substitution makes no sense, and changes nothing, as in Envoy. */
  readonly #parts: readonly (string | number)[] | undefined;

  private constructor(pattern: RE2JS, parts: readonly (string | number)[] | undefined) {
    this.#pattern = pattern;
    this.#parts = parts;
  }

  static compile({ pattern, substitution }: RegexMatchAndSubstitute): RegexSubstitution {
    const regex = compileRegex(pattern?.regex ?? '');
    return new RegexSubstitution(regex, partsOf(utf8Bytes(substitution), regex.groupCount()));
  }

  apply(text: string): string {
    if (this.#parts === undefined) return text;
    const matcher = this.#pattern.matcher(text);
    let out = '';
    let from = 0;
    while (matcher.find()) {
      out += text.slice(from, matcher.start());
      for (const part of this.#parts) out += typeof part === 'string' ? part : (matcher.group(part) ?? '');
      from = matcher.end();
    }
    return out + text.slice(from);
  }
}

function partsOf(substitution: string, groupCount: number): (string | number)[] | undefined {
  const parts: (string | number)[] = [];
  let text = '';
  for (let i = 0; i < substitution.length; i++) {
    if (substitution[i] !== '\\') {
      text += substitution[i];
      continue;
    }
    const next = substitution[++i] ?? '';
    if (next === '\\') text += next;
    else if (/\d/.test(next) && Number(next) <= groupCount) {
      parts.push(text, Number(next));
      text = '';
    } else return undefined;
  }
  return [...parts, text];
}
