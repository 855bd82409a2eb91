/**
 * The package's copyright file: the project's own license, and those of everything that is in the bundle or beside it, word for word, as they ask for.
 * A text that several share is said once.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Metafile } from 'esbuild'
import manifest from '../../package.json' with { type: 'json' }

const root = fileURLToPath(new URL('../..', import.meta.url))
const LICENSE_FILE = /^(licen[cs]e|copying|notice)([-.].*)?$/i
/** Debian has this text already, and asks to name it. */
const APACHE = '/usr/share/common-licenses/Apache-2.0'
const RULE = '-'.repeat(78)

type Part = { name: string; version: string; license: string; text: string }

/** @throws when a part says nothing of its license: then nobody may have it. */
export function copyrightFile(metafile: Metafile, nodeLicense: string): string {
  const directories = new Set(Object.keys(metafile.inputs).flatMap((input) => packageOf(input) ?? []))
  directories.add('node_modules/koffi')
  const parts = [...directories].sort().map(partIn)
  const node = { name: 'Node.js', version: manifest.dependencies.node, license: 'MIT', text: nodeLicense }
  const byText = Map.groupBy([node, ...parts], ({ text }) => text)
  const blocks = [...byText].map(([text, those]) => {
    const names = those.map(({ name, version, license }) => `${name} ${version} (${license})`)
    return [RULE, ...names, RULE, '', text.trim() || 'It has no text of its own: see its package.', ''].join('\n')
  })
  return `undernet is licensed under the Apache License, version 2.0. On Debian systems its text is in
${APACHE}.

What follows are the licenses of the programs and libraries that are part of this package, in
/usr/lib/undernet.

${blocks.join('\n')}`
}

/** `node_modules/a/node_modules/b` of a file in it; undefined for the project's own. */
function packageOf(input: string): string | undefined {
  return /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(input)?.[0]
}

function partIn(directory: string): Part {
  const place = join(root, directory)
  const { name, version, license } = JSON.parse(readFileSync(join(place, 'package.json'), 'utf8')) as Partial<Part>
  if (name === undefined || version === undefined || typeof license !== 'string')
    throw new Error(`${directory} does not say under which license it is`)
  const files = readdirSync(place)
    .filter((file) => LICENSE_FILE.test(file))
    .sort()
  const text = files.map((file) => readFileSync(join(place, file), 'utf8').trim()).join('\n\n')
  return { name, version, license, text }
}
