"""A small world that draws itself: scenes, their captions, and their pictures in two styles."""
