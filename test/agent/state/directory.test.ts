/** The state directory: modes, and one agent at a time, also after kill -9. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { StateDirectory } from '../../../agent/state/directory.ts'

const scratch = () => join(mkdtempSync(join(tmpdir(), 'undernet-state-')), 'state')

describe('state directory', () => {
  it('is made for its owner only, and closed when it was open to others', () => {
    const path = scratch()
    StateDirectory.open(path)[Symbol.dispose]()
    expect(statSync(path).mode & 0o777).toBe(0o700)
    chmodSync(path, 0o755)
    StateDirectory.open(path)[Symbol.dispose]()
    expect(statSync(path).mode & 0o777).toBe(0o700)
  })

  it('tells a second agent who holds it, and is free again once released', () => {
    const path = scratch()
    const first = StateDirectory.open(path)
    expect(() => StateDirectory.open(path)).toThrow(
      new RegExp(`another agent uses the state in .* \\(process ${process.pid}`),
    )
    first[Symbol.dispose]()
    StateDirectory.open(path)[Symbol.dispose]()
  })

  it('is free at once after its holder was killed', async () => {
    const path = scratch()
    const source = `import { StateDirectory } from ${JSON.stringify(new URL('../../../agent/state/directory.ts', import.meta.url).href)}
      globalThis.state = StateDirectory.open(${JSON.stringify(path)}); console.log('held'); setInterval(() => {}, 1e6)`
    const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', source], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    await once(child.stdout, 'data')
    expect(() => StateDirectory.open(path)).toThrow(`process ${child.pid}`)
    child.kill('SIGKILL')
    await once(child, 'exit')
    StateDirectory.open(path)[Symbol.dispose]()
  })

  it('says what to do when it cannot be made', () => {
    expect(() => StateDirectory.open('/dev/null/state')).toThrow(/cannot be used: ENOTDIR/)
  })
})
