/** agent/reference/configuration.md: every key with what it may be and is by default, from agent/config/keys.ts. */

import { CREDENTIALS } from '../agent/config/credentials.ts'
import { KEYS } from '../agent/config/keys.ts'
import type { Form } from '../agent/config/values.ts'
import { defaultInWords } from './options.ts'

const HEAD = `# Configuration

<!-- Made by \`npm run reference\` from agent/config/. -->

In order of precedence: flags of \`agent start\` (\`--max-peers 12\`), the environment (\`UNDERNET_MAX_PEERS=12\`), a TOML file (\`max_peers = 12\`), defaults. The
file is \`/etc/undernet/agent.toml\` for the service, \`~/.config/undernet/agent.toml\` for an agent that a person starts, or what \`--config\` or
\`UNDERNET_CONFIG\` names. \`agent config show\` prints each value and where it came from. An unknown key is an error that names the nearest known one.

Where the last column says so, a running agent takes a change over on SIGHUP (\`systemctl reload undernet\`); the others need a restart, and the log says which.
On NixOS the same keys are \`services.undernet.settings\`, with these types.

| key | what | type | default | on SIGHUP |
|---|---|---|---|---|
`

const TAIL = `
Secrets come as credentials of systemd: ${Object.entries(CREDENTIALS)
  .map(([key, name]) => `a file \`${name}\` in \`/etc/credstore\` is \`${key}\``)
  .join(', ')}, unless the configuration says otherwise.
`

/** What there is to say beyond the help of the flag, by key. */
const MORE: Readonly<Record<string, string>> = {
  lanes:
    'On the addresses of `listen`; encrypted, with keys handed over on the connection there. Another port is taken when somebody has it.',
  join_file: '`#` begins a comment. A path, since a token is a secret.',
  addresses: 'Each agent of a machine needs its own range, and finds one by itself.',
  upload_rate: 'Shared fairly among those that ask.',
  upstreams: 'Without `?network=` in your only closed network.',
  private_paths: 'A list of your own replaces the default; `agent config show` prints it.',
  services:
    'As `NAME=HOST:PORT`, and behind `?`, with `&` between: `proto=tcp|udp|http`, `check=tcp|none|http:/PATH`, `label=KEY:VALUE`, `weight=N`, `network=NAME`, `proxy-protocol=yes`.',
  forwards: 'As `NAME=HOST:PORT`, and behind `?`: `proto=udp`, `sticky=yes`.',
  registries: 'Without `?prefix=` the host’s name; without `?network=` in your only closed network.',
}

export function configurationPage(): string {
  const unknown = Object.keys(MORE).filter((key) => !KEYS.has(key))
  if (unknown.length > 0) throw new Error(`more is said of ${unknown.join(', ')}, which there is not`)
  const rows = [...KEYS].map(([key, { help, kind, reloads }]) => {
    const what = [help, MORE[key]].filter((one) => one !== undefined).join('. ')
    return [`\`${key}\``, what, typeInWords(kind.form), defaultInWords(key), reloads ? 'yes' : ''].map(cell).join(' | ')
  })
  return `${HEAD}${rows.map((row) => `| ${row} |`).join('\n')}\n${TAIL}`
}

function typeInWords(form: Form): string {
  switch (form.is) {
    case 'boolean':
      return '`true` or `false`'
    case 'integer':
      return `${form.min} to ${form.max}${orOff(form)}`
    case 'choice':
      return form.of.map((one) => `\`${one}\``).join(', ')
    case 'path':
      return `path${orOff(form)}`
    case 'text':
      return form.what
    case 'list':
      return `list: ${typeInWords(form.of)}`
  }
}

function orOff(form: { off?: true }): string {
  return form.off === undefined ? '' : ', or `off`'
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|')
}
