/**
 * Every block of shell in README.md, run in its order on machines in boxes, word for word. A comment above a block says where:
 *
 *   <!-- run on nas -->                       line by line, each of which has to succeed
 *   <!-- run on nas and laptop -->            at once
 *   <!-- run on nas, going on -->             one line that goes on while the next blocks run
 *   <!-- run on nas, with what was printed before as input -->
 *   <!-- run on nas, with what is above added to policy.toml -->      the block before, which is no shell
 *   <!-- run on nas, where BECAUSE: COMMAND -->          another command in place of the block
 *   <!-- not run: BECAUSE -->
 *
 * A block without such a comment fails, and so does one that nobody can run.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadConfig } from '../../agent/config/config.ts'
import { parsePolicy } from '../../protocols/membership/policy-text.ts'
import { Bundle, type Outcome, until } from '../agents.ts'
import { hasNamespaces } from '../lan.ts'
import { hasNix, NixClosure } from '../nix-paths.ts'
import { type Box, Boxes } from './boxes.ts'

/** As the command line says that something is not there: what was done a moment ago on the other machine may not have arrived. */
const EXIT_NOT_FOUND = 5
const ARRIVES_MS_MAX = 30_000
const SHELLS = ['sh', 'console', 'bash']
/** As one reads them. */
const PATH_OF_HELLO = '/nix/store/…-hello'
const KEY_OF_NAS = 'nas-1:…='

type Block = { line: number; title: string; language: string; text: string; comment: string | undefined }

const readme = readFileSync('README.md', 'utf8')
const blocks = [...readme.matchAll(/(?:<!-- ((?:(?!-->).)+) -->\n)?^```(\w*)\n(.*?)^```$/gms)].map(
  ({ index, 1: comment, 2: language = '', 3: text = '' }): Block => {
    const [title = ''] = text.split('\n', 1)
    return { line: readme.slice(0, index).split('\n').length, title, language, text, comment }
  },
)
const shellBlocks = blocks.filter(({ language }) => SHELLS.includes(language))

/** What a comment says. */
function wayOf(comment = ''): { machines: string[]; how: string; command?: string | undefined } | 'not run' {
  if (/^not run: .{10,}/.test(comment)) return 'not run'
  const [, machines, how = '', command] =
    /^run on ([a-z]+(?: and [a-z]+)*)(?:, ([^:]+))?(?:: (.+))?$/.exec(comment) ?? []
  if (machines === undefined) throw new Error(`a block of README.md says "${comment}", which nobody understands`)
  return { machines: machines.split(' and '), how, command }
}

describe.skipIf(!hasNamespaces || !hasNix)('README.md', () => {
  const stack = new AsyncDisposableStack()
  let boxes: Boxes
  let bundle: Bundle
  let closure: NixClosure
  let keyOfNas = ''
  let printed = ''

  beforeAll(async () => {
    bundle = stack.use(await Bundle.build())
    closure = stack.use(await NixClosure.make({ name: 'hello' }))
    boxes = stack.use(await Boxes.start(['nas', 'laptop'], { ownNix: ['laptop'] }))
    await furnish(boxes.get('nas'), boxes.get('laptop'), closure)
  })
  afterAll(() => stack.disposeAsync())

  it('has a comment above each block of shell that says where it is run, or why it is not', () => {
    expect(shellBlocks.length).toBeGreaterThan(15)
    for (const { comment } of shellBlocks) wayOf(comment)
  })

  it.each(shellBlocks.filter(({ comment }) => wayOf(comment) !== 'not run'))('line $line: $title', async (block) => {
    const way = wayOf(block.comment)
    if (way === 'not run') return
    const { machines, how, command } = way
    const lines = command === undefined ? linesOf(block.text) : [command]
    const outputs = await Promise.all(machines.map((name) => runBlock(boxes.get(name), lines, how, block)))
    printed = outputs.join('')
  })

  it.each(blocks.filter(({ language }) => language === 'toml'))('line $line: $title', ({ text }) => {
    if (text.includes('[[grants]]')) return expect(parsePolicy(text).length).toBeGreaterThan(0)
    const file = boxes.get('nas').path('/root/agent.toml')
    writeFileSync(file, text)
    expect(loadConfig({ env: {}, file }).entries.some(({ origin }) => origin === 'file')).toBe(true)
  })

  async function runBlock(box: Box, lines: string[], how: string, block: Block): Promise<string> {
    const file = /^with what is above added to (\S+)$/.exec(how)?.[1]
    if (file !== undefined) await box.type(`cat >> ${file}`, blocks[blocks.indexOf(block) - 1]?.text)
    if (how === 'going on') {
      expect(lines).toHaveLength(1)
      await box.goOn(asMeant(lines[0] ?? ''))
      return ''
    }
    const input = how.startsWith('with what was printed') ? printed : ''
    if (lines.some((line) => line.includes('old-laptop'))) await addOldLaptop(boxes)
    if (lines.some((line) => line.includes(KEY_OF_NAS)))
      keyOfNas = (await succeeds(boxes.get('nas'), 'agent nix-conf --json | jq -r .publicKey', '')).stdout.trim()
    let last = ''
    for (const line of lines) last = (await succeeds(box, asMeant(line), input)).stdout
    return last
  }

  /** The command of a bundle, and what stands for the names of the day. */
  function asMeant(line: string): string {
    const agent = `${process.execPath} ${bundle.entry}`
    return line
      .replace('npm run agent --', agent)
      .replaceAll(PATH_OF_HELLO, closure.root)
      .replaceAll(KEY_OF_NAS, keyOfNas)
  }

  async function succeeds(box: Box, line: string, input: string): Promise<Outcome> {
    let outcome: Outcome | undefined
    await until(
      async () => {
        outcome = await box.type(line, input)
        return outcome.code !== EXIT_NOT_FOUND
      },
      { what: () => `${line} on ${box.name}: ${outcome?.stderr}`, ms: ARRIVES_MS_MAX },
    )
    if (outcome?.code !== 0) throw new Error(`${line}\non ${box.name} ended with ${outcome?.code}: ${outcome?.stderr}`)
    return outcome
  }
})

/** One a line; what stands behind a # is for readers, and bash agrees. */
function linesOf(text: string): string[] {
  return text
    .replaceAll('\\\n', ' ')
    .split('\n')
    .filter((line) => line.trim() !== '' && !line.startsWith('#'))
}

/** What somebody has who reads this: a build of Nix, some files, an application, an image. */
async function furnish(nas: Box, laptop: Box, closure: NixClosure): Promise<void> {
  for (const box of [nas, laptop])
    box.file('/etc/nix/nix.conf', 'sandbox = false\nexperimental-features = nix-command\nsubstituters =\n')
  nas.file('/root/photos/beach.jpg', 'sand\n')
  nas.file('/root/notes.pdf', 'notes\n')
  nas.file('/root/pass', 'correct horse battery staple\n')
  nas.file('/root/www/health', 'well\n')
  nas.file('/root/www/index.html', 'the application\n')
  const root = 'mkdir -p image/bin && cp /bin/busybox image/bin/sh && tar cf image.tar -C image .'
  const steps = [
    `ln -s ${closure.root} result`,
    `${root} && podman import -q -c 'CMD ["/bin/sh","-c","echo it runs"]' image.tar localhost/app:1`,
  ]
  const done = await Promise.all(steps.map((step) => nas.type(step)))
  expect(done.map(({ code, stderr }) => [code, stderr])).toEqual(steps.map(() => [0, expect.anything()]))
  await nas.goOn('python3 -u -m http.server 8080 --bind 127.0.0.1 --directory www', /Serving/)
}

/** A member that is not needed any more: a second agent on the laptop. */
async function addOldLaptop(boxes: Boxes): Promise<void> {
  const laptop = boxes.get('laptop')
  const off = '--http off --proxy off --dns off --lanes off --no-mdns --no-open'
  const own = '--state /root/old --socket /root/old.sock --listen /ip4/0.0.0.0/tcp/7577'
  await laptop.goOn(`agent start ${own} ${off}`, /agent\.started/)
  const { stdout } = await boxes.get('nas').type('agent invite')
  const joined = await laptop.type('agent join --as old-laptop --socket /root/old.sock', stdout)
  expect(joined.code, joined.stderr).toBe(0)
}
