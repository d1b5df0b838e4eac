"""The generated street scenes; raw ids are the positions."""

# (name, RGB)
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (135, 190, 235)),
    ("water", (40, 90, 180)),
    ("grass", (110, 190, 80)),
    ("road", (128, 64, 128)),
    ("building", (190, 120, 90)),
    ("tree", (20, 110, 50)),
    ("pole", (250, 220, 90)),
    ("sign", (230, 50, 60)),
    ("car", (70, 20, 140)),
)
