"""Training: the step, a pure function, and the loop around it.

Not here: what the loop works on (`runs/`), and losses (`losses/`).
"""
